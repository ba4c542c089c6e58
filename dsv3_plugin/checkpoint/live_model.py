"""A live model's weights under their Hugging Face names, without a disk in between.

For rollout engines and for tests. The same table and the same cutting of boxes as for checkpoints:
a rank's shards are the chunks, and what other ranks hold arrives by broadcast.
"""

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from dsv3_plugin.checkpoint.formats.dist_reader import Chunk, Slices, assemble
from dsv3_plugin.checkpoint.names import WEIGHT_KEYS, Entry, layout
from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe.fields import from_attributes
from dsv3_plugin.recipe.model import ModelConfig

Shard = tuple[str, tuple[int, ...], tuple[int, ...], torch.dtype]
"""(key, offset, sizes, type) of what a rank holds."""


@torch.no_grad()
def iter_hf_tensors(
    model: torch.nn.Module | Sequence[torch.nn.Module],
    config: ModelConfig | None = None,
    *,
    dtype: torch.dtype | None = None,
    group: dist.ProcessGroup | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the model's Hugging Face checkpoint, one at a time, in that order.

    Without a process group the model has to be whole. With one, every rank of it has to iterate to
    the end: ranks hold different layers and experts, and each tensor is broadcast to all.

    Args:
        model: a GPTModel of either backend, or the virtual pipeline stages of this rank.
        config: what the model is; taken from the model itself if not given. Then the vocabulary is
            the model's, padding included.
        dtype: type to cast to; the router bias keeps its own.
        group: ranks that hold the model together.

    Yields:
        (name, tensor). A tensor may be a view of the parameter: copy it to keep it.

    Raises UserError before the first one if it is given no model, or if the model, or the group,
    does not hold all of them.
    """
    stages = [*model] if isinstance(model, Sequence) and not isinstance(model, str) else [model]
    for stage in stages:
        if not isinstance(stage, torch.nn.Module):
            raise UserError(
                f"iter_hf_tensors takes a model in memory (a GPTModel, or this rank's stages of "
                f"one), not {type(stage).__name__}: of a checkpoint's folder, export_hf makes "
                "files."
            )
    held = _held(stages)
    ranks = 1 if group is None else dist.get_world_size(group)
    everybody: list[list[Shard]] = [list(held)]
    if group is not None:
        everybody = [[] for _ in range(ranks)]
        dist.all_gather_object(everybody, list(held), group=group, weights_only=True)
    chunks: dict[str, dict[tuple, Chunk]] = {}
    for rank, shards in enumerate(everybody):
        for shard in shards:
            key, offset, sizes, _ = shard
            load = partial(_part, held.get(shard), shard, rank, group)
            # Replicas hold the same box: the lowest rank's is the one that is sent.
            chunks.setdefault(key, {}).setdefault((offset, sizes), Chunk(offset, sizes, load))
    types = {shard[0]: shard[3] for shards in everybody for shard in shards}
    entries = layout(config or model_of(stages[0]))
    # Before the first tensor: a rollout engine should not be left with half a model.
    shapes = {k: entry.global_shape for entry in entries for k in (entry.key, entry.alias)}
    whole = {k for k in chunks if k in shapes and _covered(chunks[k], shapes[k])}
    keys = [_key(entry, chunks.keys(), whole, group is not None) for entry in entries]
    for entry, key in zip(entries, keys, strict=True):
        tensor = _tensor(entry, list(chunks[key].values()), types[key])
        yield entry.name, tensor if dtype is None or entry.precision == "fp32" else tensor.to(dtype)


def model_of(model: torch.nn.Module) -> ModelConfig:
    """What a live GPTModel is.

    Args:
        model: any pipeline stage of it.
    """
    model = _unwrapped(model)
    fields = from_attributes(model.config) | {
        "name": "model",
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_sequence_length,
        "share_embeddings_and_output_weights": model.share_embeddings_and_output_weights,
    }
    return ModelConfig.model_validate(fields)


def _key(entry: Entry, held: Set[str], whole: Set[str], grouped: bool) -> str:
    """The key under which an entry's distributed tensor is held as a whole, or a UserError."""
    names = (entry.key, entry.alias)
    if key := next((name for name in names if name in whole), None):
        return key
    part = "only part" if held & {*names} else "nothing"
    hint = (
        "the ranks of the group are not all that hold the model"
        if grouped
        else "if other ranks hold the rest, give their process group as group="
    )
    raise UserError(f"the model has {part} of {entry.key}, which {entry.name} is made of: {hint}.")


def _covered(boxes: Iterable[tuple[tuple[int, ...], tuple[int, ...]]], shape: tuple) -> bool:
    """Whether boxes (offset, sizes) that do not overlap fill a shape; they may reach beyond it.

    The vocabulary does: what lies beyond the model's own is padding.
    """
    held = sum(
        math.prod(
            max(0, min(begin + length, whole) - begin)
            for begin, length, whole in zip(offset, sizes, shape, strict=True)
        )
        for offset, sizes in boxes
    )
    return held == math.prod(shape)


def distributed_tensors(stage: torch.nn.Module) -> Iterator[Any]:
    """This rank's parts of a model's distributed tensors, upstream's ShardedTensor.

    Args:
        stage: a GPTModel, or a pipeline stage of one; its parameters are the parts' `data`.
    """
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import apply_factories

    state: dict[str, Any] = _unwrapped(stage).sharded_state_dict(metadata={})
    apply_factories(state)
    for value in nested_values(state):
        if isinstance(value, ShardedTensor) and value.key.startswith(WEIGHT_KEYS):
            yield value


def _held(stages: Sequence[torch.nn.Module]) -> dict[Shard, torch.Tensor]:
    """What this rank holds of the distributed tensors."""
    held = {}
    for stage in stages:
        for part in distributed_tensors(stage):
            sizes = (1,) * part.prepend_axis_num + tuple(part.local_shape)
            held[part.key, tuple(part.global_offset), sizes, part.data.dtype] = part.data
    return held


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The GPTModel inside upstream's wrappers (DDP, Float16Module)."""
    inner = model
    while not hasattr(inner, "share_embeddings_and_output_weights"):
        inner = getattr(inner, "module", None)
        if inner is None:
            raise UserError(
                f"{type(model).__name__} is no GPTModel of Megatron's, nor a wrapper of one: its "
                "weights have no names by which Hugging Face's could be found."
            )
    return inner


def _part(
    data: torch.Tensor | None,
    shard: Shard,
    rank: int,
    group: dist.ProcessGroup | None,
    part: Slices,
) -> torch.Tensor:
    """Part of a shard, from this rank's memory or from the rank that holds it."""
    _, _, sizes, dtype = shard
    if group is None:
        return data.view(sizes)[part]
    source = dist.get_global_rank(group, rank)
    if dist.get_rank() == source:
        piece = data.view(sizes)[part].contiguous()
    else:
        on_gpu = dist.get_backend(group) == "nccl"
        piece = torch.empty(
            [s.stop - s.start for s in part],
            dtype=dtype,
            device=torch.cuda.current_device() if on_gpu else "cpu",
        )
    dist.broadcast(piece, source, group=group)
    return piece


def _tensor(entry: Entry, chunks: list[Chunk], dtype: torch.dtype) -> torch.Tensor:
    try:
        return assemble(chunks, entry.offset, entry.sizes, dtype).view(entry.shape)
    except ValueError as error:
        raise UserError(f"{entry.name} ({entry.key}): {error}.") from error
