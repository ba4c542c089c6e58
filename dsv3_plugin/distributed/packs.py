"""Samples of a pack: where they end, and which of them each token belongs to.

`Packs` is upstream's `PackedSeqParams` with what its users here ask beyond it: the ends as numbers
of the host, so that nobody waits for the device to read them, and for routers the sample of each
token. A micro-batch of several sequences is one row, the sequences one after the other (upstream
calls that flattened), so everything that is packed is `[1, t]`.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from dsv3_plugin.distributed.zigzag import Zigzag, taken
from dsv3_plugin.errors import UserError

PADDING = -1
"""In place of a sample's number."""
CHOSEN = -1
"""In place of an expert's number."""


@dataclass(frozen=True)
class RoutedSamples:
    """The samples of tokens as a router meets them.

    Attributes:
        numbers: int64 `[t]`, each token's sample, `PADDING` where it is none's.
        lengths: float32 `[samples]`, tokens of each without padding, on all ranks that share it.
        weights: float32 `[samples]`, of each in a mean over samples: its tokens in the loss.
        experts: integers `[t, top-k]`, where each token has to go, in this order, `CHOSEN` where
            the router chooses; None: it does for all.
    """

    numbers: Tensor
    lengths: Tensor
    weights: Tensor
    experts: Tensor | None = None

    @property
    def padding(self) -> Tensor:
        """Bool `[t]`, where a token is none's."""
        return self.numbers == PADDING


@dataclass
class Packs(PackedSeqParams):
    """Upstream's, of samples that are causal each by itself.

    Attributes:
        ends: where samples end with their padding, 0 before the first; the last is the whole.
        numbers: int64 `[t]` of this context-parallel rank, see `RoutedSamples`.
        left: int64 `[t]`, how many tokens of its sample follow each; 0 for padding.
        lengths, weights: see `RoutedSamples`.
        learned: float32 `[]`, tokens in the loss, on average over the ranks that share them; 1 at
            least, since it is divided by.
        experts: `[t, MoE layers, top-k]`, see `RoutedSamples`: of the whole model's layers, those
            of multi-token prediction aside.
    """

    ends: tuple[int, ...] = ()
    numbers: Tensor | None = None
    left: Tensor | None = None
    lengths: Tensor | None = None
    weights: Tensor | None = None
    learned: Tensor | None = None
    experts: Tensor | None = None

    @cached_property
    def sample_lengths(self) -> tuple[int, ...]:
        """Places of each sample, its padding among them."""
        return tuple(b - a for a, b in pairwise(self.ends))

    def routed(self, place: int | None, ahead: int, part: int, parts: int) -> RoutedSamples:
        """As a router meets them.

        Args:
            place: number of its layer among the MoE layers of the model; None: it is none of them.
            ahead: how many tokens ahead its layer predicts beyond the next; the last tokens of a
                sample have none there and do not count.
            part, parts: which part of the tokens is this rank's, by sequence parallelism.
        """
        numbers = self.numbers
        lengths = self.lengths
        if ahead:
            numbers = numbers.masked_fill(self.left < ahead, PADDING)
            lengths = (lengths - ahead).clamp(min=0)
        experts = None
        if self.experts is not None and place is not None:
            experts = self.experts[:, place].chunk(parts)[part]
        return RoutedSamples(numbers.chunk(parts)[part], lengths, self.weights, experts)


def sample_lengths(tokens: int, packed: PackedSeqParams) -> tuple[int, ...]:
    """Tokens of each sample of a pack of so many, with the padding that belongs to it.

    Raises:
        UserError: it is packed in another way.
    """
    if isinstance(packed, Packs):
        return packed.sample_lengths
    if packed.qkv_format != "thd":
        raise UserError(f"Packed sequences must be 'thd', not '{packed.qkv_format}'.")
    # Read by the host once for all layers, as it waits for the device.
    ends = vars(packed).get("_ends")
    if ends is None:
        padded = packed.cu_seqlens_q_padded
        ends = (packed.cu_seqlens_q if padded is None else padded).tolist()
        vars(packed)["_ends"] = ends
    return tuple(b - a for a, b in pairwise([*ends, tokens]) if b > a)


@dataclass(frozen=True)
class Samples:
    """The samples of a micro-batch as the host counts them, for one context-parallel rank.

    Attributes: see `Packs`; all tensors are on the host.
    """

    ends: tuple[int, ...]
    numbers: Tensor
    left: Tensor
    lengths: Tensor
    weights: Tensor
    learned: Tensor


def samples_of(
    positions: Tensor, padding: Tensor, loss_mask: Tensor, zigzag_rank: int = 0, ranks: int = 1
) -> Samples:
    """The samples of sequences whose positions begin anew with each.

    Args:
        positions: int64 `[b, s]`, on the host; each sequence begins with 0.
        padding: bool `[b, s]`, where a place is filled up: behind a sample, or of a sample of its
            own behind the last.
        loss_mask: float32 `[b, s]`, 1 where a token counts in the loss.
        zigzag_rank, ranks: of the context-parallel group.
    """
    positions, padding, loss_mask = (each.flatten() for each in (positions, padding, loss_mask))
    begins = positions == 0
    numbers = begins.cumsum(0) - 1
    starts = begins.nonzero().flatten().tolist()
    ends = (*starts, len(positions))
    count = len(starts)
    lengths = torch.zeros(count).index_add_(0, numbers, (~padding).float())
    weights = torch.zeros(count).index_add_(0, numbers, loss_mask.float())
    left = (lengths.to(torch.int64)[numbers] - 1 - positions).clamp(min=0)
    numbers = numbers.masked_fill(padding, PADDING)
    left = left.masked_fill(padding, 0)
    if ranks > 1:
        rows = Zigzag(zigzag_rank, ranks, tuple(b - a for a, b in pairwise(ends))).rows()
        numbers, left = taken(numbers, rows), taken(left, rows)
    learned = (loss_mask.sum() / ranks).clamp(min=1)
    return Samples(ends, numbers, left, lengths, weights, learned)


def packs_of(samples: Samples) -> Packs:
    """Samples as upstream and routers meet them, on this process's device."""
    boundaries = torch.tensor(samples.ends, dtype=torch.int32).to("cuda", non_blocking=True)
    longest = max(b - a for a, b in pairwise(samples.ends))
    return Packs(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        ends=samples.ends,
        numbers=samples.numbers.to("cuda", non_blocking=True),
        left=samples.left.to("cuda", non_blocking=True),
        lengths=samples.lengths.to("cuda", non_blocking=True),
        weights=samples.weights.to("cuda", non_blocking=True),
        learned=samples.learned.to("cuda", non_blocking=True),
    )
