"""Weights in pieces that a server can take one after the other.

Servers fuse some tensors of a Hugging Face folder into one, or compute another from them when they
have come: an FP8 weight and its scales; MLA's two projections down, which read the same input
(vLLM's and SGLang's `fused_qkv_a_proj_with_mqa`); the gate and up projections of an MLP; the three
of a routed expert, which kernels of grouped products want laid out together. A part of such in one
piece and the rest in the next is loaded wrongly, or not at all.
"""

import re
from collections.abc import Iterable

_SCALES = re.compile(r"(_scale_inv|_scale)$")
_PARTNERS = (
    (re.compile(r"\.(q_a_proj|kv_a_proj_with_mqa)\.weight$"), ".qkv_a_proj.weight"),
    (re.compile(r"(\.experts\.\d+)\.(gate|up|down)_proj\.weight$"), r"\1.weight"),
    (re.compile(r"\.(gate_proj|up_proj)\.weight$"), ".gate_up_proj.weight"),
)


def loaded_with(name: str) -> str:
    """What a tensor is loaded as: tensors of which this is equal have to come together."""
    whole = _SCALES.sub("", name)
    for pattern, fused in _PARTNERS:
        whole = pattern.sub(fused, whole)
    return whole


def buckets(tensors: Iterable[tuple[str, int]], most_bytes: int) -> list[list[str]]:
    """Names of tensors, divided in their order.

    Args:
        tensors: names as in a Hugging Face folder, and bytes.
        most_bytes: of a bucket. What has to come together and is larger has one of its own.

    Returns:
        Each name once. What has to come together stands where the first of it stood.
    """
    units: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for name, size in tensors:
        unit = loaded_with(name)
        units.setdefault(unit, []).append(name)
        sizes[unit] = sizes.get(unit, 0) + size
    divided: list[list[str]] = []
    filled = 0
    for unit, names in units.items():
        if not divided or filled + sizes[unit] > most_bytes:
            divided.append([])
            filled = 0
        divided[-1] += names
        filled += sizes[unit]
    return divided
