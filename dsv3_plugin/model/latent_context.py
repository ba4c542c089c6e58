"""Context parallelism for multi-head latent attention: latents travel, keys and values do not.

Each rank of a context-parallel group holds two chunks of every sequence (`distributed.zigzag`).
Its queries need the keys and values of all tokens before them. Upstream has those travel around the
group: at DeepSeek-V3's width 128 heads of 192 + 128 values, 40,960 a token and layer. They are made
of 576: the normed latent of 512 and the rotated key of 64 that all heads share (DeepSeek-V2, arXiv
2405.04434, equations 9 to 19). Those are gathered here, once forward, and their gradient is summed
and scattered once backward; each rank projects them up by itself.

The keys and values of the whole sequence, for all heads, would be 10.7 GB at 128K tokens in BF16.
They never are there together: heads attend in groups, and what attention would keep of a group's
keys and values until its backward is dropped, and projected up again when the backward gets there
(`KeysValues`). Attention itself is not computed again, unless the recipe asks for that.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from dsv3_plugin.distributed import overlap
from dsv3_plugin.distributed.packs import sample_lengths
from dsv3_plugin.distributed.zigzag import Zigzag, taken
from dsv3_plugin.model.linear import WeightGradients
from dsv3_plugin.model.rotary import AssembleKeys


def zigzag_of(tokens: int, group: dist.ProcessGroup, packed: PackedSeqParams | None) -> Zigzag:
    """How a sequence lies on the ranks of a group.

    Args:
        tokens: of each rank.
        group: the ranks.
        packed: the samples of a pack; None where the sequence is one.

    Raises:
        UserError: samples that do not divide.
    """
    whole = tokens * group.size()
    lengths = (whole,) if packed is None else sample_lengths(whole, packed)
    return Zigzag(group.rank(), group.size(), lengths)


class GatherLatents(torch.autograd.Function):
    """What all ranks hold, [s, b, d] in the order of the sequence, of this rank's [s / N, b, d]."""

    @staticmethod
    def forward(ctx, mine: Tensor, zigzag: Zigzag, group: dist.ProcessGroup) -> Tensor:
        ctx.zigzag, ctx.group = zigzag, group
        return gathered(mine, zigzag, group)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """Every rank has a gradient of the whole; the sum of this rank's tokens comes back."""
        by_rank = taken(grad, ctx.zigzag.by_rank)
        mine = grad.new_empty(len(grad) // ctx.zigzag.size, *grad.shape[1:])
        overlap.wait(dist.reduce_scatter_tensor(mine, by_rank, group=ctx.group, async_op=True))
        return mine, None, None


def gathered(mine: Tensor, zigzag: Zigzag, group: dist.ProcessGroup) -> Tensor:
    """The whole sequence of what each rank holds a part of, along the first dimension."""
    everyone = mine.new_empty(zigzag.size * len(mine), *mine.shape[1:])
    work = dist.all_gather_into_tensor(everyone, mine.contiguous(), group=group, async_op=True)
    overlap.wait(work)
    return taken(everyone, zigzag.in_order)


def attend_to_prefixes(
    core: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, zigzag: Zigzag
) -> tuple[Tensor, ...]:
    """Causal attention of this rank's chunks, one after the other, [own, b, heads · d of values].

    Args:
        core: attention that lets the last query stand at the last key.
        query: of the rank's tokens, [s / N, b, heads, d].
        key, value: of the whole sequence, [s, b, heads, …].
        zigzag: where the tokens stand.
    """
    if attends_to_packs(core, zigzag):
        return core.attend_to_packs(query, key, value, zigzag)
    chunks = zigzag.halves
    keys = _Slices.apply(key, [seen for _, seen in chunks])
    values = _Slices.apply(value, [seen for _, seen in chunks])
    outs = []
    for (own, _), k, v in zip(chunks, keys, values, strict=True):
        q = query[own]
        square = len(q) == len(k)
        mask = AttnMaskType.causal if square else AttnMaskType.causal_bottom_right
        outs.append(core(q, k, v, None, attn_mask_type=mask))
    return tuple(outs)


class Together(torch.autograd.Function):
    """What groups of heads gave for each chunk, [s / N, b, heads · d], from `groups` by chunks."""

    @staticmethod
    def forward(ctx, groups: int, *pieces: Tensor) -> Tensor:
        ctx.groups, ctx.rows = groups, [len(piece) for piece in pieces[: len(pieces) // groups]]
        return together(groups, pieces)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_groups = grad.chunk(ctx.groups, dim=-1)
        return None, *(piece for of_group in of_groups for piece in of_group.split(ctx.rows))


def together(groups: int, pieces: Sequence[Tensor]) -> Tensor:
    """The pieces, the first group's first, in one tensor."""
    of_group = len(pieces) // groups
    first, width = pieces[0], pieces[0].shape[-1]
    whole = first.new_empty(sum(map(len, pieces[:of_group])), first.shape[1], groups * width)
    for group in range(groups):
        start = 0
        for piece in pieces[group * of_group : (group + 1) * of_group]:
            whole[start : start + len(piece), :, group * width : (group + 1) * width] = piece
            start += len(piece)
    return whole


@contextmanager
def kept_in_pieces(whole: Tensor, groups: int, pieces: Sequence[Tensor]) -> Iterator[None]:
    """Inside, autograd keeps the pieces of a tensor, which attention keeps anyway, and not it."""
    known = [whole.untyped_storage()]
    parts = [piece.detach() for piece in pieces]

    def pack(tensor: Tensor) -> Any:
        if known and tensor.untyped_storage()._cdata == known[0]._cdata:
            return _View(0, tensor.size(), tensor.stride(), tensor.storage_offset())
        return tensor

    def unpack(kept: Any) -> Tensor:
        return kept.of(together(groups, parts)) if isinstance(kept, _View) else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
    known.clear()


def attends_to_packs(core: Callable[..., Tensor], zigzag: Zigzag) -> bool:
    """Whether core attention takes all samples together, with values as wide as keys."""
    return len(zigzag.lengths) > 1 and hasattr(core, "attend_to_packs")


class _Slices(torch.autograd.Function):
    """Overlapping slices of a tensor along its first dimension."""

    @staticmethod
    def forward(ctx, whole: Tensor, slices: list[slice]) -> tuple[Tensor, ...]:
        ctx.slices, ctx.shape = slices, whole.shape
        return tuple(whole[piece] for piece in slices)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradients added up where they overlap, in one tensor."""
        total = grads[0].new_zeros(ctx.shape)
        for piece, grad in zip(ctx.slices, grads, strict=True):
            total[piece] += grad
        return total, None


@dataclass(frozen=True)
class UpProjection:
    """What makes keys and values of latents: W^UK and W^UV, head by head.

    Attributes:
        weight: [heads · (width of a key's own part + width of a value), width of the latent].
        gradients: where the gradient of the weight goes.
        groups: of heads.
        latent: the latent's width; behind it stands the rotated key.
        plain: width of the part of a key that is a head's own.
        head: width of that and of a value together.
        value: width of values as attention wants them, zero beyond their own.
    """

    weight: torch.nn.Parameter
    gradients: WeightGradients
    groups: int
    latent: int
    plain: int
    head: int
    value: int

    def rows(self, group: int) -> slice:
        """The rows of the weight that are a group's."""
        number = len(self.weight) // self.groups
        return slice(group * number, (group + 1) * number)


class KeysValues:
    """Keys and values of all tokens, for one group of heads after the other.

    Args:
        latents: of the whole sequence, [s, b, latent + rotary].
        up: the projection.
    """

    def __init__(self, latents: Tensor, up: UpProjection) -> None:
        self._latents, self._up = latents, up
        self._weight_gradient = _WeightGradient(up)

    def of_group(self, group: int) -> tuple[Tensor, Tensor]:
        """Keys [s, b, heads, d] and values [s, b, heads, d of values] of a group of heads."""
        up = self._up
        latent, rotated = self._latents.split(
            [up.latent, self._latents.shape[-1] - up.latent], dim=-1
        )
        kv = _UpProject.apply(latent, up.weight, group, self._weight_gradient)
        return AssembleKeys.apply(kv.unflatten(-1, (-1, up.head)), rotated, up.plain, up.value)

    @contextmanager
    def dropped_until_backward(self, group: int, key: Tensor, value: Tensor) -> Iterator[None]:
        """Inside, autograd keeps of a group's keys and values where they are, and not them."""
        mine = [key.untyped_storage(), value.untyped_storage()]
        made = _MadeAgain(lambda: self._again(group))

        def pack(tensor: Tensor) -> Any:
            storage = tensor.untyped_storage()
            for index, known in enumerate(mine):
                if storage._cdata == known._cdata:
                    return made.expects(index, tensor)
            return tensor

        def unpack(kept: Any) -> Tensor:
            return made.view(kept) if isinstance(kept, _View) else kept

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
        mine.clear()  # autograd keeps `pack` for as long as what it packed

    @torch.no_grad()
    def _again(self, group: int) -> tuple[Tensor, Tensor]:
        return self.of_group(group)


@dataclass(frozen=True)
class _View:
    """Where a tensor lies in another: in a group's keys (0), its values (1), or the only one."""

    index: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def of(self, whole: Tensor) -> Tensor:
        """The same view of another tensor, which lies as that did."""
        return whole.as_strided(self.size, self.stride, self.offset)


class _MadeAgain:
    """A group's keys and values in the backward: made when first asked for, until last asked."""

    def __init__(self, make: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self._make = make
        self._made: tuple[Tensor, Tensor] | None = None
        self._expected = self._left = 0

    def expects(self, index: int, tensor: Tensor) -> _View:
        """Take note that a tensor will be asked for."""
        self._expected += 1
        self._left = self._expected
        return _View(index, tensor.size(), tensor.stride(), tensor.storage_offset())

    def view(self, kept: _View) -> Tensor:
        """The tensor."""
        if self._made is None:
            self._made = self._make()
        view = kept.of(self._made[kept.index])
        self._left -= 1
        if self._left == 0:  # the next backward, if there is one, makes them anew
            self._made, self._left = None, self._expected
        return view


class _UpProject(torch.autograd.Function):
    """The rows of a group of heads: y = x W[rows]ᵀ, [s, b, rows]."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, group: int, gradient: "_WeightGradient") -> Tensor:
        ctx.save_for_backward(x)
        ctx.group, ctx.gradient = group, gradient
        return torch.matmul(x, weight[gradient.up.rows(group)].t())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,), up = ctx.saved_tensors, ctx.gradient.up
        rows = up.rows(ctx.group)
        grad = grad.reshape(-1, grad.shape[-1])
        grad_x = torch.mm(grad, up.weight[rows]).view(x.shape)
        whole = None
        if ctx.needs_input_grad[1]:
            whole = ctx.gradient.of_group(rows, grad, x.reshape(-1, x.shape[-1]))
        return grad_x, whole, None, None


class _WeightGradient:
    """The gradient of the weight, put together group by group.

    Each part is computed at once, also where weight gradients are to wait: what would wait is the
    gradient of all keys and values of the whole sequence, and what is made of it is as small as the
    weight. When the last group's is there the whole goes where the module's gradients go, at once
    or when the schedule asks for it.
    """

    def __init__(self, up: UpProjection) -> None:
        self.up = up
        self._whole: Tensor | None = None
        self._missing = up.groups

    def of_group(self, rows: slice, grad: Tensor, x: Tensor) -> Tensor | None:
        """Add a group's part: [t, rows] of the output's gradient, [t, latent] of the input."""
        weight = self.up.weight
        if self._whole is None:
            self._whole = grad.new_empty(weight.shape)
        torch.mm(grad.t(), x, out=self._whole[rows])
        self._missing -= 1
        if self._missing:
            return None
        whole, self._whole, self._missing = self._whole, None, self.up.groups

        def product(out: Tensor | None) -> Tensor:
            return whole if out is None else out.add_(whole)

        return self.up.gradients.arrive([(weight, product)])[0]
