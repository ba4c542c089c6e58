"""The tensors of a model that ranks hold together, put together again."""

from collections.abc import Iterable

import torch

from dsv3_plugin.checkpoint.live_model import distributed_tensors

Part = tuple[str, tuple[int, ...], tuple[int, ...], torch.Tensor]
"""(key, offset in the whole, shape of the whole, values)."""


def parts(stages: Iterable[torch.nn.Module]) -> list[Part]:
    """What a rank holds of the model's tensors."""
    return [
        (
            tensor.key,
            tensor.global_offset,
            tensor.global_shape,
            tensor.data.detach().clone().view([1] * tensor.prepend_axis_num + [*tensor.data.shape]),
        )
        for stage in stages
        for tensor in distributed_tensors(stage)
    ]


def whole(held: Iterable[Part]) -> dict[str, torch.Tensor]:
    """The model's tensors, of the parts of all its ranks; NaN where nobody holds any."""
    tensors: dict[str, torch.Tensor] = {}
    for key, offset, shape, values in held:
        full = tensors.setdefault(key, values.new_full(shape, float("nan")))
        box = tuple(slice(o, o + n) for o, n in zip(offset, values.shape, strict=True))
        known = full[box]
        assert (known.isnan() | (known == values)).all(), f"{key}: copies differ"
        full[box] = values
    return tensors
