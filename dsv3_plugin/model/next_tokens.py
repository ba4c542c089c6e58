"""Tokens, labels and masks one place further, for multi-token prediction.

Depth k predicts the token k + 1 places ahead (DeepSeek-V3, arXiv 2412.19437, equations 21 to 25),
so upstream rolls tokens, labels and masks by one for each depth. With context parallelism or packed
samples its way has three faults, which the one here has not:

* Samples of a pack lie between padded boundaries, and upstream rolls between those without padding:
  behind the first padding labels cross from one sample to the next.
* It counts the labels that are left on this rank, and divides the loss by that. The last label of a
  sequence is lost on the first rank alone, so the mean over ranks is none over tokens. Here every
  rank counts those of the whole sequence, and takes its part of them.
* With context parallelism it sends single elements between neighbours in the group of all ranks,
  twice for each sample. Here one gather takes them all: 8 bytes a token, where a layer's latents
  take 1,152.
"""

import functools
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from dsv3_plugin.distributed.packs import Packs, sample_lengths
from dsv3_plugin.distributed.zigzag import taken
from dsv3_plugin.model.latent_context import gathered, zigzag_of


def roll_tensor(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `multi_token_prediction.roll_tensor`; same arguments, same result on one rank."""

    @functools.wraps(original)
    def within_samples(
        tensor: Tensor | None,
        shifts: int = -1,
        dims: int = -1,
        cp_group: Any = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        ranks = 1 if cp_group is None else cp_group.size()
        if tensor is None or shifts != -1 or (ranks == 1 and packed_seq_params is None):
            return original(tensor, shifts, dims, cp_group, packed_seq_params)
        mine = tensor.movedim(dims, 0)
        if ranks == 1:
            rolled = _rolled(mine, sample_lengths(len(mine), packed_seq_params))
            return rolled.movedim(0, dims), _counted(rolled, packed_seq_params)
        zigzag = zigzag_of(len(mine), cp_group, packed_seq_params)
        whole = gathered(mine.contiguous(), zigzag, cp_group)
        rolled = _rolled(whole, zigzag.lengths)
        mine = taken(rolled, zigzag.rows()).movedim(0, dims)
        return mine, _counted(rolled, packed_seq_params, ranks)

    return within_samples


def _counted(rolled: Tensor, packed: PackedSeqParams | None, ranks: int = 1) -> Tensor:
    """What upstream divides the loss by: labels of the whole, on average over the ranks.

    Of a pack it is all tokens in the loss, by which the loss is multiplied as well (`mtp_tokens`).
    """
    return packed.learned if isinstance(packed, Packs) else rolled.sum() / ranks


def _rolled(whole: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """[s, …], each sample's elements one place further to its beginning, its last one zero."""
    rolled = torch.empty_like(whole)
    rolled[:-1] = whole[1:]
    for end in accumulate(lengths):
        rolled[end - 1] = 0
    return rolled
