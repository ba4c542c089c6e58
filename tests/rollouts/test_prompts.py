"""Files of prompts: what is kept, left out and counted, or refused, and in what words."""

import gzip
import json
from pathlib import Path

import pytest

from dsv3_plugin.data.left_out import Tally
from dsv3_plugin.errors import UserError
from dsv3_plugin.rollouts.prompts import Prompt, RewardNames, read_prompts

REWARDS = RewardNames(("accuracy", "form"), of_all=("accuracy",), comparing=("accuracy",))


def file_of(folder: Path, *rows: object, name: str = "prompts.jsonl") -> Path:
    path = folder / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path, left_out: Tally | None = None, on_bad_row: str = "skip") -> list[Prompt]:
    return list(read_prompts([path], REWARDS, on_bad_row=on_bad_row, left_out=left_out))


def test_both_forms_are_read(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "3+4?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "And twice that?"},
    ]
    path = file_of(
        tmp_path,
        {"prompt": "1+1?", "answer": 2, "system": "Be brief.", "level": 3},
        {"messages": turns, "answer": "14", "rewards": ["form", "accuracy", "form"]},
        {"prompt": "Say anything.", "reward": "form", "answer": None},
    )
    one, two, three = read(path, on_bad_row="stop")
    assert one.system == "Be brief."
    assert [turn["role"] for turn in one.conversation.messages] == ["system", "user"]
    assert (one.expected, one.rewards, one.row["level"]) == (2, ("accuracy",), 3)
    assert (two.conversation.messages, two.rewards) == (turns, ("form", "accuracy"))
    assert (two.system, three.expected, three.where) == (None, None, f"{path} line 3")


def test_a_compressed_file_is_the_same(tmp_path: Path) -> None:
    path = file_of(tmp_path, {"prompt": "1+1?", "answer": "2"})
    packed = tmp_path / "prompts.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [prompt.key for prompt in read(packed)] == [prompt.key for prompt in read(path)]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        {"prompt": "1+1?", "answer": "2"},
        {"prompt": "2+2?"},
        {"messages": [{"role": "user", "content": "1+1?"}], "answer": "2"},
        {"prompt": "1+1?", "answer": "3"},
        "{half",
        {"prompt": "What is love?", "rewards": ["form"]},
    )
    tally = Tally()
    assert [prompt.where.rpartition(" ")[2] for prompt in read(path, tally)] == ["1", "6"]
    assert [(one.things, one.why, one.count) for one in tally.all()] == [
        ("prompts", 'without an "answer" to compare with', 1),
        ("prompts", "asked before", 1),
        ("prompts", "asked before, answered otherwise", 1),
        ("rows", "cannot be read", 1),
    ]
    assert tally.all()[1].examples == (f"{path} line 3 as {path} line 1",)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("{half", "is not JSON"),
        ("[1]", 'is not a JSON object with a "prompt" or "messages"'),
        ({"question": "?"}, 'has neither "prompt" nor "messages" (its keys: question)'),
        ({"prompt": 7}, "the user's text is not text but int"),
        ({"prompt": " \n"}, "the user's text is empty"),
        ('{"prompt": "\\ud800"}', "lone surrogate"),
        ({"messages": []}, '"messages" is not a list of turns'),
        ({"messages": [{"role": "me", "content": "x"}]}, "turn 1 has the role 'me'"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "ends with a turn of assistant: end it with a user's",
        ),
        ({"prompt": "x", "rewards": ["magic"]}, "the reward 'magic', which there is not: take one"),
        ({"prompt": "x", "rewards": []}, "names none"),
        ({"prompt": "x", "rewards": {"accuracy": 1}}, "is not a list of names"),
        ({"prompt": "x", "tools": 3}, '"tools" is not a list'),
    ],
)
def test_what_is_no_prompt_is_said_with_its_line(
    tmp_path: Path, row: object, sentence: str
) -> None:
    path = file_of(tmp_path, {"prompt": "1+1?", "answer": "2"}, row)
    with pytest.raises(UserError) as refused:
        read(path, on_bad_row="stop")
    assert str(refused.value).startswith(f"{path} line 2")
    assert sentence in str(refused.value)
    tally = Tally()
    assert len(read(path, tally)) == 1
    assert [(one.things, one.count) for one in tally.all()] == [("rows", 1)]


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompts to answer"):
        read(file_of(tmp_path))
    with pytest.raises(UserError, match=r'no prompts to answer: 1 prompt: without an "answer"'):
        read(file_of(tmp_path, {"prompt": "1+1?"}))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read(tmp_path / "nowhere.jsonl")
