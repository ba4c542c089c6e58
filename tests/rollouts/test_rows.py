"""Answers behind their prompts, as the model reads them."""

import torch

from dsv3_plugin.rollouts.rows import NONE, Text, micro_batches, packed

TEXTS = [
    Text((1, 2, 3), (4, 5), (-0.1, -0.2)),
    Text((6,), (7, 8, 9), (-0.3, -0.4, -0.5), reference=(-1.0, -2.0, -3.0)),
]


def test_each_place_is_about_the_token_behind_it() -> None:
    text = TEXTS[0]
    [row] = packed([text], 8, 1, 99)
    assert row["tokens"].tolist() == [1, 2, 3, 4, 5, 99, 99, 99]
    assert row["labels"][:4].tolist() == [2, 3, 4, 5]
    assert row["answers"].tolist() == [NONE, NONE, 0, 0, NONE, NONE, NONE, NONE]
    assert row["loss_mask"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert row["labels"][row["answers"] == 0].tolist() == list(text.answer)
    torch.testing.assert_close(row["log_probs"][2:4], torch.tensor(text.log_probs))
    assert row["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert row["padding_mask"].tolist() == [False] * 5 + [True] * 3


def test_every_answer_lies_somewhere_once_and_whole() -> None:
    texts = [Text((1,) * (n % 3 + 1), (2,) * (n % 5 + 1), (-1.0,) * (n % 5 + 1)) for n in range(23)]
    for multiple in (1, 4):
        rows = packed(texts, 9, multiple, 0)
        assert len(rows) % multiple == 0
        numbers = torch.cat([row["answers"] for row in rows])
        for number, text in enumerate(texts):
            assert (numbers == number).sum() == len(text.answer)
            assert sum(bool((row["answers"] == number).any()) for row in rows) == 1


def test_without_answers_there_is_padding() -> None:
    rows = packed([], 4, 2, 0)
    assert len(rows) == 2
    assert all(row["padding_mask"].all() for row in rows)


def test_ranks_have_all_of_it_together() -> None:
    rows = packed(TEXTS, 5, 4, 0)
    parts = [micro_batches(rows, 2, rank, 2) for rank in range(2)]
    assert [len(part) for part in parts] == [1, 1]
    answers = torch.cat([batch["answers"].flatten() for part in parts for batch in part])
    assert set(answers.tolist()) == {NONE, 0, 1}


def test_what_some_lack_is_nothing_there() -> None:
    rows = packed(TEXTS, 5, 1, 0)
    together = {key for row in rows for key in row}
    assert all(row.keys() == together for row in rows)
    assert "old" not in together
    seen = torch.cat([row["reference"] for row in rows])
    assert seen[seen != 0].tolist() == [-1.0, -2.0, -3.0]
