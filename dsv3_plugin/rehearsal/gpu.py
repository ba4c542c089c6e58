"""The device of a cluster, as CUDA describes one. Without torch."""

from dataclasses import dataclass

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.cluster import Cluster

_WITHOUT_CUDA = ("AMD", "Intel")
"""Makers of devices whose runtime, collectives and Transformer Engine are others."""


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
        capability=(10, 0) if cluster.is_blackwell else (9, 0),
        memory_bytes=int(cluster.memory_gb * 1e9),
        multiprocessors=cluster.multiprocessors,
        per_node=cluster.gpus_per_node,
    )
