"""Templates: the tokens of transformers' `apply_chat_template`, and what the assistant has said."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dsv3_plugin.data.chat.conversation import Conversation, conversation_of
from dsv3_plugin.data.chat.template import open_template
from dsv3_plugin.data.encode import Encoder, Text
from dsv3_plugin.data.tokenizer import open_tokenizer, train_bpe
from dsv3_plugin.errors import UserError

MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
)
WITH_TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% for call in m.tool_calls or [] %}call {{ call.function.name }}{% endfor %}"
    "{{ m.content or '' }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ '<think>' if thinking }}{% endif %}"
)
FORGETS = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Thoughts of earlier turns are left out, as reasoning models do."""

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is four. 四"},
    {"role": "user", "content": "And <｜Assistant｜> 3?"},
    {"role": "assistant", "content": "five, six"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe([json.dumps(TURNS) * 3 + "four five six 四 It is"] * 4, 330, folder)
    return folder


def learned(folder: Path, conversation: Conversation, source: str | None, **more):
    """The token ids of a conversation, and the text of those that are learned."""
    written = None
    if source is not None:
        written = folder.parent / "written.jinja"
        written.write_text(source)
    template = open_template(folder, written, more.pop("arguments", {}), more.pop("turns", "all"))
    content = template.render(conversation, "chat.jsonl line 1")
    opened = open_tokenizer(folder)
    encoder = Encoder(opened.backend, opened.eos_id, None, 0.0, 0)
    (encoded,) = encoder.encode([Text(content.text, "jsonl", False, "1", content.spans)])
    said = [token for token, mark in zip(encoded.ids, encoded.learned, strict=True) if mark]
    return encoded.ids.tolist(), encoded.learned.tolist(), opened.decode(said)


def test_ids_are_those_of_transformers(tokenizer: Path):
    theirs = AutoTokenizer.from_pretrained(tokenizer)
    for source in (None, MARKED, WITH_TOOLS):
        ids, _, _ = learned(tokenizer, Conversation(TURNS), source)
        assert ids == theirs.apply_chat_template(TURNS, chat_template=source)["input_ids"]


def test_marked_turns_are_those_of_transformers(tokenizer: Path):
    theirs = AutoTokenizer.from_pretrained(tokenizer).apply_chat_template(
        TURNS, chat_template=MARKED, return_assistant_tokens_mask=True
    )
    _, marks, said = learned(tokenizer, Conversation(TURNS), MARKED)
    assert marks == theirs["assistant_masks"]
    assert said == "It is four. 四<|end|>five, six<|end|>"


def test_of_a_template_that_marks_nothing_what_follows_the_prompt_is_learned(tokenizer: Path):
    _, _, said = learned(tokenizer, Conversation(TURNS), None)
    assert said == "It is four. 四<｜end▁of▁sentence｜>five, six<｜end▁of▁sentence｜>"
    _, _, last = learned(tokenizer, Conversation(TURNS), None, turns="last")
    assert last == "five, six<｜end▁of▁sentence｜>"


def test_tools_and_arguments_reach_the_template(tokenizer: Path):
    row = {
        "messages": [
            {"role": "user", "content": "add"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "<think>four</think>4"},
        ],
        "tools": [{"type": "function", "function": {"name": "add"}}],
    }
    conversation = conversation_of(row, "here")
    ids, _, said = learned(tokenizer, conversation, WITH_TOOLS)
    theirs = AutoTokenizer.from_pretrained(tokenizer).apply_chat_template(
        row["messages"], tools=row["tools"], chat_template=WITH_TOOLS
    )
    assert ids == theirs["input_ids"]
    assert said == "call add<|end|>\n<think>four</think>4<|end|>\n"
    thinking = {"arguments": {"thinking": True}, "turns": "last"}
    _, _, thought = learned(tokenizer, conversation, WITH_TOOLS, **thinking)
    assert thought == "four</think>4<|end|>\n", "what the prompt opens is not learned"


def test_of_a_turn_that_is_marked_in_pieces_all_are_learned(tokenizer: Path):
    pieces = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content[:3] }}{% endgeneration %}|"
        "{% generation %}{{ m.content[3:] }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    _, _, said = learned(tokenizer, Conversation(TURNS), pieces, turns="last")
    assert said == "five, six"


def test_a_prompt_that_opens_what_no_turn_has_is_refused_with_a_way_out(tokenizer: Path):
    opens = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    )
    for turns in ("all", "last"):
        with pytest.raises(UserError, match=r"begins an answer otherwise .* {% generation %}"):
            learned(tokenizer, Conversation(TURNS), opens, turns=turns)


def test_turns_that_are_written_otherwise_later_are_refused_unless_the_last_alone_is_learned(
    tokenizer: Path,
):
    turns = [*TURNS[1:2], {"role": "assistant", "content": "<think>2 + 2</think>four"}, *TURNS[3:]]
    with pytest.raises(UserError, match=r"line 1: the chat template writes .*data.turns: last"):
        learned(tokenizer, Conversation(turns), FORGETS)
    _, _, said = learned(tokenizer, Conversation(turns), FORGETS, turns="last")
    assert said == "five, six"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{{ raise_exception('no system prompt') }}", "template fails: no system prompt"),
        ("{% for %}", "template fails: "),
        ("{{ messages[0].content }}", "writes nothing of the assistant's turns"),
        ("{{ ().__class__.__bases__[0].__subclasses__() }}", "template fails: .*unsafe"),
    ],
)
def test_a_template_that_fails_is_named_with_the_row(tokenizer: Path, source, sentence):
    with pytest.raises(UserError, match=f"chat.jsonl line 1: .*{sentence}"):
        learned(tokenizer, Conversation(TURNS), source)


def test_a_tokenizer_without_a_template_says_where_to_put_one(tokenizer: Path, tmp_path: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tokenizer / name).read_bytes())
    with pytest.raises(UserError, match=r"has no chat template: put .*data\.template"):
        open_template(tmp_path, None, {}, "all")


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (None, "cannot be read: No such file or directory; name a file in Jinja"),
        (b"\x80", "cannot be read: it is not UTF-8 text (byte 0x80 at offset 0); name a file"),
    ],
)
def test_a_file_that_is_no_template_is_refused_before_any_row(
    tokenizer: Path, tmp_path: Path, contents: bytes | None, sentence: str
):
    written = tmp_path / "written.jinja"
    if contents is not None:
        written.write_bytes(contents)
    with pytest.raises(UserError) as refused:
        open_template(tokenizer, written, {}, "all")
    assert str(refused.value).startswith(f"the chat template {written} {sentence}")


def test_a_folder_is_no_template(tokenizer: Path, tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read: Is a directory; name a file in Jinja"):
        open_template(tokenizer, tmp_path, {}, "all")
