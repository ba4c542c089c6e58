"""Files with rows that are no conversations: each is named, and refused or left out and counted."""

import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from dsv3_plugin.data.build import build_dataset
from dsv3_plugin.data.chat.form import ChatForm
from dsv3_plugin.data.chat.template import open_template
from dsv3_plugin.data.corpus import find_sources
from dsv3_plugin.data.dataset_folder import Dataset
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.data.encode import Encoder, Text
from dsv3_plugin.data.tokenizer import TextTokenizer, open_tokenizer, train_bpe
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.epochs_counted import FILE

GOOD = {"prompt": "hello", "response": "world"}
LONGEST = 64


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(["hello world question answer\n" * 50], 300, folder)
    return open_tokenizer(folder)


def build(files: list[Path], tokenizer: TextTokenizer, out: Path, on_bad_row: str) -> Dataset:
    form = ChatForm(open_template(tokenizer.folder, None, {}, "all"))
    return build_dataset(
        files, tokenizer, out, held_out=0.0, form=form, longest=LONGEST, on_bad_row=on_bad_row
    )


def chat(*roles: str) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": "hello"} for role in roles]}).encode()


@pytest.mark.parametrize(
    ("row", "why", "sentence"),
    [
        (chat("user"), "cannot be read", "bad.jsonl line 2 has no turn of an assistant"),
        (chat("user", "user", "assistant"), "cannot be read",
         "bad.jsonl line 2: turn 2: user after user is out of order"),
        (chat("user", "assistant", "tool", "assistant"), "cannot be read",
         "bad.jsonl line 2: the chat template fails: this template knows no tools"),
        (json.dumps({"messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]},
        ]}).encode(), "cannot be read", "this template knows no tools"),
        (json.dumps({"messages": [{"role": "user", "content": "hello"},
                                  {"role": "assistant", "content": "world"}],
                     "tools": [{"type": "function"}]}).encode(), "cannot be read",
         "this template knows no tools"),
        (json.dumps({"prompt": "x", "response": "world " * 99}).encode(),
         f"longer than a sequence of {LONGEST} tokens", "bad.jsonl:2 has 106"),
        (b'{"prompt": "\xff", "response": "x"}', "cannot be read",
         r"bad.jsonl line 2 is not UTF-8 text \(byte 0xff"),
        (rb'{"prompt": "\ud800", "response": "x"}', "cannot be read",
         "bad.jsonl line 2 is not valid Unicode"),
        (b'{"prompt": ', "cannot be read", "bad.jsonl line 2 is not JSON"),
    ],
    ids=["no assistant", "order", "template", "calls", "tools", "long", "utf-8", "surrogate",
         "json"],
)  # fmt: skip
def test_a_bad_row_is_named_and_refused_or_counted(
    row: bytes, why: str, sentence: str, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n" + row + b"\n")
    with pytest.raises(UserError, match=sentence) as refused:
        build([file], tokenizer, tmp_path / "data", "stop")
    assert "data.on_bad_row: skip" in str(refused.value)

    built = build([file], tokenizer, tmp_path / "data", "skip")
    assert built.manifest.train.documents == 1
    (left_out,) = built.manifest.corpus.left_out
    assert (left_out.count, left_out.why) == (1, why)
    assert sentence.split(r" \(")[0] in str(left_out)

    # Touched, its texts are the same, and so is what was left out; it stops whoever wants it to.
    os.utime(file, (1, 1))
    again = build([file], tokenizer, tmp_path / "data", "skip")
    assert again.manifest.corpus.left_out == (left_out,)
    with pytest.raises(UserError, match=sentence):
        build([file], tokenizer, tmp_path / "data", "stop")


def test_tools_that_a_template_does_not_write_are_no_tools_to_learn(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    template = tmp_path / "deaf.jinja"
    template.write_text("{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}{% endfor %}"
                        "{% if add_generation_prompt %}<|assistant|>{% endif %}")  # fmt: skip
    form = ChatForm(open_template(tokenizer.folder, template, {}, "all"))
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add"}}]}
    turns = [{"role": "user", "content": "2 + 2"}, call, {"role": "tool", "content": "4"},
             {"role": "assistant", "content": "4"}]  # fmt: skip
    for more, lost in ({"tools": [{"type": "function"}]}, "tools"), ({}, "tool calls"):
        with pytest.raises(UserError, match=f"here: .* writes nothing of its {lost}: name one"):
            form.content({"messages": turns} | more, "here")


def test_a_table_is_read_as_its_rows_are_as_json(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """A column of structs has the keys of all of them, without values where a row has none."""
    template = tmp_path / "loud.jinja"
    template.write_text("{% for m in messages %}<|{{ m.role }}|>{{ m | tojson }}{% endfor %}"
                        "{% if add_generation_prompt %}<|assistant|>{% endif %}")  # fmt: skip
    calls = [{"function": {"name": "add", "arguments": arguments}} for arguments in
             ({"a": 1}, {"b": [2]})]  # fmt: skip
    rows = [
        {"messages": [{"role": "user", "content": "hello"},
                      {"role": "assistant", "content": "x", "tool_calls": [call]}]}
        for call in calls
    ]  # fmt: skip
    table, lines = tmp_path / "rows.parquet", tmp_path / "rows.jsonl"
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    form = ChatForm(open_template(tokenizer.folder, template, {}, "all"))
    texts = [
        [document.text for document in read_documents(find_sources([path], form), form)]
        for path in (table, lines)
    ]
    assert texts[0] == texts[1]
    assert "null" not in "".join(texts[0])


def test_an_empty_file_is_named_too(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    good, empty = tmp_path / "good.jsonl", tmp_path / "empty.jsonl"
    good.write_text(json.dumps(GOOD) + "\n")
    for nothing in ("", "\n\n"):
        empty.write_text(nothing)
        with pytest.raises(UserError, match=r"empty\.jsonl is empty: it holds no row"):
            build([good, empty], tokenizer, tmp_path / "data", "stop")
        built = build([good, empty], tokenizer, tmp_path / "data", "skip")
        assert "empty.jsonl is empty" in str(built.manifest.corpus.left_out[0])
        with pytest.raises(UserError, match=r"the corpus is empty: .*empty.jsonl is empty"):
            build([empty], tokenizer, tmp_path / "nothing", "skip")


def test_of_a_file_that_is_not_there_no_text_is_the_way_out(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        build([tmp_path / "chat.jsonl"], tokenizer, tmp_path / "data", "stop")
    assert str(refused.value) == (
        f"corpus {tmp_path}/chat.jsonl does not exist: name a file or a folder of conversations."
    )


def test_what_is_far_too_long_is_not_encoded_to_its_end(tokenizer: TextTokenizer) -> None:
    encoder = Encoder(tokenizer.backend, tokenizer.eos_id, None, 0.0, 0, longest=LONGEST)
    text = "hello " * 200_000
    (cut,) = encoder.encode([Text(text, "jsonl", False, "a.jsonl:1", ((0, 5),))])
    assert cut.is_cut
    assert LONGEST < len(cut.ids) <= 1_000_000
    (whole,) = encoder.encode([Text(text[:300_000], "jsonl", False, "a.jsonl:1", ((0, 5),))])
    assert not whole.is_cut
    assert tokenizer.decode(whole.ids) == text[:300_000]


def test_conversations_that_were_counted_give_way_to_others(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    file, counted = tmp_path / "good.jsonl", tmp_path / "data" / FILE
    for rows in (1, 2):
        file.write_text(f"{json.dumps(GOOD)}\n" * rows)
        built = build([file], tokenizer, tmp_path / "data", "stop")
        assert built.manifest.train.documents == rows
        assert not counted.exists(), "of what was there before"
        counted.write_text("{}")


def test_where_all_are_too_long_nothing_is_built(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps(GOOD | {"response": "world " * 99}) + "\n")
    with pytest.raises(UserError, match=r"no conversation is left to train on \(1 row: longer"):
        build([file], tokenizer, tmp_path / "data", "skip")
    assert not (tmp_path / "data").exists()
