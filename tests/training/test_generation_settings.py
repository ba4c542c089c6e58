"""By which tokens the answer of a fine-tuned model ends."""

import json
from pathlib import Path

import pytest
from transformers import GenerationConfig

from dsv3_plugin.checkpoint.conversion.tokenizer_files import end_ids
from dsv3_plugin.data.tokenizer import EOS, PAD, open_tokenizer, train_bpe
from dsv3_plugin.training.generation_settings import write_generation_settings

CHATML = (
    "{% for message in messages %}<｜fim▁begin｜>{{ message.role }}\n{{ message.content }}"
    f"{PAD}\n{{% endfor %}}"
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    train_bpe(["ask and answer\n" * 9], 300, folder)
    return folder


def written(folder: Path) -> GenerationConfig:
    write_generation_settings(folder, {})
    return GenerationConfig.from_pretrained(folder)


def test_a_template_that_ends_turns_as_documents_end(tokenizer: Path) -> None:
    eos = open_tokenizer(tokenizer).eos_id
    found = written(tokenizer)
    assert found.eos_token_id == eos
    assert (found.bos_token_id, found.pad_token_id) == (
        0,
        open_tokenizer(tokenizer).backend.token_to_id(PAD),
    )


def test_a_turn_may_end_by_another_token_with_text_behind_it(tokenizer: Path) -> None:
    (tokenizer / "chat_template.jinja").write_text(CHATML)
    backend = open_tokenizer(tokenizer).backend
    ends = [backend.token_to_id(PAD), backend.token_to_id(EOS)]
    assert written(tokenizer).eos_token_id == ends
    assert end_ids(tokenizer, 1) == {*ends}
    assert written(tokenizer).eos_token_id == ends, "written once more it stays"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no such conversation') }}",
        "{% for message in messages %}{{ message.content | upper }}{% endfor %}",
    ],
)
def test_where_the_template_does_not_tell_documents_end_answers(
    tokenizer: Path, template: str
) -> None:
    (tokenizer / "chat_template.jinja").write_text(template)
    assert written(tokenizer).eos_token_id == open_tokenizer(tokenizer).eos_id


def test_what_the_parent_came_with_stays(tokenizer: Path) -> None:
    came_with = {"temperature": 0.6, "do_sample": True, "eos_token_id": [5, 7]}
    (tokenizer / "generation_config.json").write_text(json.dumps(came_with))
    found = written(tokenizer)
    assert (found.temperature, found.do_sample) == (0.6, True)
    assert found.eos_token_id == [open_tokenizer(tokenizer).eos_id, 5, 7]
