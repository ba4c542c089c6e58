"""How long an operation takes on a device: its peak, the share a large kernel reaches, its shape.

Matrix products follow two effects of their shape that published measurements show (DeepGEMM's table
of FP8 products on an H800): output tiles come in whole waves over the multiprocessors, and every
tile pays for its beginning and end, as if the contraction were longer. Attention pays in the same
way for short sequences (FlashAttention-3, arXiv 2407.08608, figure 5). Nothing is faster than its
bytes through the memory.
"""

from math import ceil

from dsv3_plugin.planner.cluster import Cluster, Link
from dsv3_plugin.planner.setting import BYTES
from dsv3_plugin.planner.time.operations import Attention, Gemm, Message, Move, Operation


def seconds(operation: Operation, cluster: Cluster) -> float:
    """The time of one operation on its own."""
    match operation:
        case Gemm():
            return _gemm(operation, cluster)
        case Attention():
            share = cluster.efficiency.attention_forward
            if operation.backward:
                share = cluster.efficiency.attention_backward
            length = operation.seq_length / (operation.seq_length + cluster.ends.attention)
            rate = cluster.peak_tflops.bf16 * 1e12 * share.value * length
            return operation.flops / rate
        case Move():
            return operation.bytes / memory_rate(cluster)
        case Message():
            return transfer(operation.bytes, cluster, operation.link, operation.count)


def transfer(sent: float, cluster: Cluster, link: str, count: int = 1) -> float:
    """Seconds that a rank takes to send so many bytes in `count` exchanges."""
    wire: Link = getattr(cluster, link)
    share = getattr(cluster.efficiency, link).value
    return sent / (wire.gb_per_second * 1e9 * share) + count * wire.latency_us * 1e-6


def memory_rate(cluster: Cluster) -> float:
    """Bytes per second of a kernel that only moves them."""
    return cluster.memory_gb_per_second * 1e9 * cluster.efficiency.memory.value


def _gemm(gemm: Gemm, cluster: Cluster) -> float:
    if not gemm.rows:
        return 0.0
    peak = getattr(cluster.peak_tflops, gemm.format)
    share = getattr(cluster.efficiency, f"gemm_{gemm.format}")
    assert peak is not None  # who asks has looked whether the device has the format
    assert share is not None
    rate = peak * 1e12 * share.value * _shape_factor(gemm, cluster)
    # The weight gradient of groups has one product a group; any other has its rows divided.
    operands = gemm.rows * gemm.depth + gemm.columns * gemm.depth * gemm.groups
    moved = BYTES[gemm.format] * operands + 2 * gemm.rows * gemm.columns
    return max(gemm.flops / rate, moved / memory_rate(cluster))


def _shape_factor(gemm: Gemm, cluster: Cluster) -> float:
    tile = cluster.ends.tile
    tiles = gemm.groups * ceil(gemm.rows / gemm.groups / tile) * ceil(gemm.columns / tile)
    waves = ceil(tiles / cluster.multiprocessors) * cluster.multiprocessors
    whole = gemm.rows * gemm.columns / (tiles * tile * tile)
    return whole * tiles / waves * gemm.depth / (gemm.depth + cluster.ends.gemm)
