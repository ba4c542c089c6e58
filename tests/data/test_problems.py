"""Problems that can be verified, and cannot be guessed: counted from the files themselves."""

import json
from collections import Counter

import pytest

from dsv3_plugin.data import problems
from dsv3_plugin.data.tokenizer import (
    SMALLEST_VOCABULARY,
    encode_texts,
    open_tokenizer,
    train_bpe,
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """By the names of their files."""
    folder = tmp_path_factory.mktemp("problems")
    read = {}
    for name in ("counting", "taught", "asked", "held_out"):
        problems.write(folder / f"{name}.jsonl")
        text = (folder / f"{name}.jsonl").read_text()
        read[name] = [json.loads(line) for line in text.splitlines()]
    return read


def test_problems_held_out_are_neither_asked_nor_taught(rows):
    """By their operands, in either order of them."""
    held_out = {frozenset(row["prompt"].split()) for row in rows["held_out"]}
    for name in ("asked", "taught"):
        others = {frozenset(row["prompt"].split()) for row in rows[name]}
        assert held_out.isdisjoint(others)


@pytest.mark.parametrize("name", ["asked", "held_out"])
def test_answers_are_right_and_no_constant_is(rows, name):
    prompts = [row["prompt"] for row in rows[name]]
    assert len({*prompts}) == len(prompts)
    for row in rows[name]:
        first, second = map(int, row["prompt"].split())
        assert int(row["answer"]) == max(first, second)
    answers = Counter(row["answer"] for row in rows[name])
    assert len(answers) >= 50
    [(_, commonest)] = answers.most_common(1)
    assert commonest / len(prompts) < 0.1


def test_the_teacher_is_right_as_often_as_is_said(rows):
    right = sum(
        int(row["response"]) == max(map(int, row["prompt"].split())) for row in rows["taught"]
    )
    # And by chance in a few of the others, one in 90; 31,000 rows are sure to 0.01.
    assert right / len(rows["taught"]) == pytest.approx(problems.RIGHT + 0.4 / 90, abs=0.01)


def test_a_number_is_a_token_of_a_tokenizer_trained_on_them(rows, tmp_path):
    texts = [row["text"] for row in rows["counting"]]
    train_bpe(texts, SMALLEST_VOCABULARY + 90, tmp_path)
    backend = open_tokenizer(tmp_path).backend
    for number in range(10, 100):
        assert len(encode_texts(backend, [f"{number} {number}"])[0]) == 3


def test_no_other_file_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"counting, taught, asked, held_out"):
        problems.write(tmp_path / "others.jsonl")
