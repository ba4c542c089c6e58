"""Initial weights that depend on the seed and the model alone.

Upstream draws a weight where its module is built, from generators that are seeded with the rank (a
hundred apart for each pipeline stage, apart for tensor- and expert-parallel ranks) and that all
that was built or warmed up before has moved on. One seed then gives another model for another
number of ranks, schedule or place of the MTP layer, and other routers for another micro-batch.

Here each matrix is drawn again by its name, which upstream has for it already: key and offset of
its distributed tensor in a checkpoint. It is drawn on the CPU and in FP32, so a GPU begins where a
CPU does, and a BF16 model with the weights of the FP32 model, rounded. Of a matrix that is split
between ranks each takes its part of the whole, and copies on several ranks are equal.
"""

import hashlib
from collections.abc import Iterator, Sequence
from operator import add

import numpy
import torch
from megatron.core.utils import get_model_config
from torch import Tensor

from dsv3_plugin.checkpoint.live_model import distributed_tensors

ROWS = 128
"""Drawn at a time, so that rows do not depend on how many follow: vocabularies are padded."""


@torch.no_grad()
def draw_weights(chunks: Sequence[torch.nn.Module], seed: int) -> Sequence[torch.nn.Module]:
    """Draw the matrices of a rank's model chunks in place, all from N(0, init_method_std).

    (arXiv 2412.19437, section 4.2.) Vectors, which are norms and router biases, stay as upstream
    made them: ones and zeros. So do matrices that are no plain tensors, as Transformer Engine's
    FP8 parameters. Stands among `pre_wrap_hooks` of upstream's model configuration.

    Returns:
        The chunks.
    """
    for chunk in chunks:
        config = get_model_config(chunk)
        if not config.perform_initialization:
            continue
        for tensor in distributed_tensors(chunk):
            if tensor.data.dim() < 2 or type(tensor.data.data) is not Tensor:
                continue
            *leading, row, column = tensor.global_offset
            width = tensor.global_shape[-1]
            for local in numpy.ndindex(tensor.data.shape[:-2]):
                matrix = tensor.data[local]
                index = [*map(add, leading, [0] * (len(leading) - len(local)) + [*local])]
                place = row
                for rows in _drawn(f"{seed} {tensor.key} {index}", row, len(matrix), width):
                    part = rows[:, column : column + matrix.shape[1]] * config.init_method_std
                    matrix[place - row :][: len(part)].copy_(part)
                    place += len(part)
    return chunks


def _drawn(name: str, first: int, count: int, width: int) -> Iterator[Tensor]:
    """`count` rows from the `first` on of the matrix of a name, [some, width] by turns, N(0, 1)."""
    digest = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    for start in range(0, first + count, ROWS):
        block = torch.empty(ROWS, width, device="cpu").normal_(generator=generator)
        rows = block[max(0, first - start) : first + count - start]
        if len(rows):
            yield rows
