"""Answers behind their prompts, packed into sequences as conversations are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy
import torch
from torch import Tensor

from dsv3_plugin.data.packing import pack
from dsv3_plugin.distributed.packs import CHOSEN
from dsv3_plugin.rollouts.rollout import Rollout

NONE = -1
"""In place of an answer's number."""


@dataclass(frozen=True)
class Text:
    """An answer as it is trained on.

    Attributes:
        prompt, answer: token ids.
        log_probs: of the answer's tokens, as they were sampled.
        old: under the model that ratios are taken to; None: the one in training.
        reference: under the one that a divergence is taken to, if any is.
        experts: [tokens that are known, MoE layers, top-k], int32: where its first tokens went in
            the model that made it, and are to go again; None: routers choose.
    """

    prompt: Sequence[int]
    answer: Sequence[int]
    log_probs: Sequence[float]
    old: Sequence[float] | None = None
    reference: Sequence[float] | None = None
    experts: Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(cls, rollout: Rollout) -> "Text":
        """An answer as it came."""
        return cls(rollout.prompt, rollout.tokens, rollout.log_probs, experts=rollout.experts)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def packed(
    texts: Sequence[Text], room: int, multiple: int, padding: int, fewest: int = 1
) -> list[dict[str, Tensor]]:
    """Sequences that hold all texts, as `data.chat.packs` makes them of conversations.

    Beside what those have, `answers` is the number of the answer whose token a place is to predict
    (int64 `[s]`, NONE where it predicts none), and `log_probs`, `old` and `reference` are that
    token's, float32 `[s]`; `experts` those of each place, where any are known, int32
    `[s, MoE layers, top-k]`, CHOSEN elsewhere.

    Args:
        texts: all of them.
        room: tokens of a sequence.
        multiple: what the number of sequences is one of; the last ones may be padding alone.
        padding: the token in places that are filled up.
        fewest: sequences, though answers fill less.
    """
    lengths = numpy.array([len(text) for text in texts], dtype=numpy.int64)
    members: list[list[int]] = []
    if texts:
        packs = pack(numpy.arange(len(texts)), lengths, room, 0)
        members = [packs.pieces[begin:end].tolist() for begin, end in pairwise(packs.starts)]
    wanted = max(len(members), fewest)
    members += [[] for _ in range(wanted + -wanted % multiple - len(members))]
    kept = [
        name
        for name in ("log_probs", "old", "reference")
        if name == "log_probs" or any(getattr(text, name) is not None for text in texts)
    ]
    rows = [_row([(n, texts[n]) for n in own], room, padding, kept) for own in members]
    shape = next((text.experts.shape[1:] for text in texts if text.experts is not None), None)
    if shape is not None:
        for row, own in zip(rows, members, strict=True):
            row["experts"] = _experts([texts[n] for n in own], room, shape)
    return rows


def _row(
    texts: Sequence[tuple[int, Text]], room: int, padding: int, kept: Sequence[str]
) -> dict[str, Tensor]:
    row = {
        "tokens": torch.full((room,), padding, dtype=torch.int64),
        "labels": torch.full((room,), padding, dtype=torch.int64),
        "loss_mask": torch.zeros(room),
        "position_ids": torch.empty(room, dtype=torch.int64),
        "padding_mask": torch.ones(room, dtype=torch.bool),
        "answers": torch.full((room,), NONE, dtype=torch.int64),
        **{name: torch.zeros(room) for name in kept},
    }
    start = 0
    for number, text in texts:
        end = start + len(text)
        tokens = torch.tensor([*text.prompt, *text.answer], dtype=torch.int64)
        row["tokens"][start:end] = tokens
        row["labels"][start : end - 1] = tokens[1:]
        # A place predicts the token behind it: the prompt's last one the answer's first.
        learned = slice(start + len(text.prompt) - 1, end - 1)
        row["loss_mask"][learned] = 1
        row["answers"][learned] = number
        for name in kept:
            if (logs := getattr(text, name)) is not None:
                row[name][learned] = torch.tensor(logs)
        row["position_ids"][start:end] = torch.arange(len(text))
        row["padding_mask"][start:end] = False
        start = end
    row["position_ids"][start:] = torch.arange(room - start)
    return row


def _experts(texts: Sequence[Text], room: int, shape: Sequence[int]) -> Tensor:
    """Of a sequence's places."""
    experts = torch.full((room, *shape), CHOSEN, dtype=torch.int32)
    start = 0
    for text in texts:
        if text.experts is not None:
            known = text.experts[: len(text)]
            experts[start : start + len(known)] = known
        start += len(text)
    return experts


def micro_batches(
    rows: Sequence[dict[str, Tensor]], size: int, rank: int, ranks: int
) -> list[dict[str, Tensor]]:
    """A data-parallel rank's sequences, collated into micro-batches of `[size, s]`."""
    mine = rows[rank::ranks]
    return [
        {key: torch.stack([row[key] for row in mine[start : start + size]]) for key in mine[0]}
        for start in range(0, len(mine), size)
    ]
