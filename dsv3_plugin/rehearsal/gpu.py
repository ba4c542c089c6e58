"""The device of a cluster, as CUDA describes one. Without torch."""

import re
from dataclasses import dataclass

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.cluster import Cluster

_WITHOUT_CUDA = ("AMD", "Intel")
"""Makers of devices whose runtime, collectives and Transformer Engine are others."""

_CAPABILITIES = (
    (r"V100", (7, 0)),
    (r"T4", (7, 5)),
    (r"A100|A800|A30", (8, 0)),
    (r"A10|A10G|A16|A40|RTX A\d{4}", (8, 6)),
    (r"L4|L20|L40|L40S|RTX 40\d\d|RTX \d{4} Ada", (8, 9)),
    (r"H20|H100|H200|H800|GH200", (9, 0)),
)
"""By device, as NVIDIA lists them (CUDA GPU Compute Capability); Blackwell's are told apart by
`Cluster.is_blackwell`."""


@dataclass(frozen=True)
class Gpu:
    """A device as torch.cuda describes it.

    Attributes:
        name: as its maker calls it.
        capability: compute capability.
        memory_bytes: in all.
        multiprocessors: how many.
        per_node: devices of a node.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    multiprocessors: int
    per_node: int


def gpu_of(cluster: Cluster) -> Gpu:
    """The device of a cluster.

    Raises:
        UserError: it is none that CUDA, NCCL and Transformer Engine's library for it know.
    """
    maker = cluster.gpu.partition(" ")[0]
    if maker in _WITHOUT_CUDA:
        raise UserError(
            f"{cluster.name}: {cluster.gpu} is no CUDA device, and ranks are rehearsed on those "
            f"alone: `dsv3 plan --cluster {cluster.name}` says what it knows of it."
        )
    return Gpu(
        name=cluster.gpu,
        capability=_capability(cluster),
        memory_bytes=int(cluster.memory_gb * 1e9),
        multiprocessors=cluster.multiprocessors,
        per_node=cluster.gpus_per_node,
    )


def _capability(cluster: Cluster) -> tuple[int, int]:
    """The compute capability of a cluster's device.

    Raises:
        UserError: it is one that is not known here.
    """
    if cluster.is_blackwell:
        return 10, 0
    for names, capability in _CAPABILITIES:
        if re.search(rf"\b(?:{names})\b", cluster.gpu):
            return capability
    raise UserError(
        f"{cluster.name}: what CUDA says of {cluster.gpu} (gpu) is not known here, so no rank is "
        "rehearsed on it: name the device as NVIDIA does, such as NVIDIA H100."
    )
