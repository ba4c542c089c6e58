"""Memory beside states and activations: of tokens on their way, of saving, and of CUDA and NCCL.

Numbers that are no formula have their source beside them. What PyTorch's allocator loses to
fragments is not among them: nobody publishes it, and it depends on its settings.
"""

from dsv3_plugin.planner.memory.states import largest_bucket
from dsv3_plugin.planner.setting import BYTES, Setting
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.planner.time.routing import bins_hit

_NVLINK_PEERS = 8
"""DeepEP's nodes: so many ranks reach each other over NVLink."""

_CONTEXT = 1_060_000_000
"""Bytes of the driver's context and of a communicator of eight H100, before it has exchanged
anything between pairs, and without PyTorch's own (NVIDIA/nccl#1685)."""

_PAIR = (4_340_000_000 - _CONTEXT) // 7
"""Bytes for each peer in the node that NCCL's all-to-all opens its 32 channels to (the same
place: 4.34 GB after the first exchange with seven peers)."""

_COMMUNICATOR = 544_000_000
"""Bytes of a further communicator, the smallest (NVIDIA/nccl#964: two A100)."""

_NEIGHBOUR = 2 * 32 * 16 * (128 << 10)
"""Bytes of a communicator of two ranks on two nodes that send each other messages: a pool for each
direction, of 16 steps of 128 KiB for each channel (NCCL's src/transport/net.cc and src/init.cc;
NVIDIA/nccl#2363 works out one), of which H100s have 32 as above."""

_CUBLAS = 32 << 20
"""cuBLAS's workspace on Hopper (its reference, cublasSetWorkspace); TE has one for each of four
streams of grouped products and one for all others."""


def dispatch_buffers(setting: Setting, stages: tuple[Stage, ...], pairs: bool) -> int:
    """Bytes of tokens on their way to experts and back, in one layer, at their most.

    Args:
        setting: which dispatcher, and how the routing falls.
        stages: the rank's chunks; none of whose layers need have experts.
        pairs: a forward and a backward overlap, with tokens of both on their way.
    """
    has_experts = any(stage.moe or (stage.mtp and setting.model.mtp_is_moe) for stage in stages)
    if not has_experts or setting.expert == 1:
        return 0
    row = setting.model.hidden_size * setting.width
    if setting.dispatcher == "alltoall":
        # What is sent, sorted, beside what arrives.
        travelling = setting.tokens_split * (setting.model.moe_router_topk or 0) * row
        return int((travelling + setting.routed_rows * row) * (1 + pairs))
    if setting.dispatcher == "hybridep":
        return _hybridep(setting)
    to_ranks = _copies(setting, setting.expert) * setting.tokens_split
    arriving = to_ranks * setting.imbalance * row
    if setting.dispatcher == "deepep":
        # Rows that arrive, and their sums that leave, beside buffers of their own.
        return int(2 * arriving * (1 + pairs)) + _deepep(setting)
    nodes = max(1, setting.expert // setting.ranks_per_node)
    to_nodes = _copies(setting, nodes) * setting.tokens_split * row if nodes > 1 else 0
    # What it hands on between nodes comes from all ranks of its own, the busiest being one of them.
    nearby = min(setting.expert, setting.ranks_per_node)
    handed_on = to_ranks * (1 + (setting.imbalance - 1) / nearby) * row
    # On the way back, in the activations' type: rows sent and received on both hops.
    return int((arriving + handed_on + 2 * to_nodes) * (1 + pairs))


def saving(setting: Setting, stages: tuple[Stage, ...]) -> int:
    """Bytes that saving a sharded optimizer gathers on the device.

    A fully reshardable checkpoint has whole buckets of master weights and of each moment gathered,
    one after the other, in FP32 (`DistributedOptimizer.get_parameter_state_dp_zero`): a tensor for
    each rank, and the one they arrive in, which torch's all_gather into a list makes. None of it is
    on the device where the states are gathered over gloo.
    """
    if not setting.zero1 or setting.gathers_on_hosts:
        return 0
    return 2 * BYTES["fp32"] * largest_bucket(setting, stages)


def computing_streams(setting: Setting, stages: tuple[Stage, ...], pairs: bool) -> int:
    """CUDA streams of a rank that compute: one for each chunk, where two threads run the pairs.

    Those of the other dispatchers run by upstream's plan, which computes on one stream.
    """
    return len(stages) if pairs and setting.dispatcher == "two_hop" else 1


def allocator(setting: Setting, on_gpu: bool, streams: int = 1) -> int:
    """Bytes of CUDA's context, of communicators and of cuBLAS's workspaces; none on a CPU.

    Args:
        setting: the backend, and in which groups a rank is.
        on_gpu: where it computes.
        streams: how many compute, each with workspaces of its own.
    """
    if not on_gpu:
        return 0
    workspaces = 5 if setting.backend == "transformer_engine" else 1
    total = _CONTEXT + _CUBLAS * workspaces * streams
    nearby = min(setting.expert, setting.ranks_per_node)
    if setting.dispatcher in ("alltoall", "two_hop") and nearby > 1:
        total += _PAIR * (nearby - 1)
    further = (
        setting.pipeline > 1,
        setting.tensor > 1,
        setting.context > 1,
        setting.expert > 1 and setting.expert_replicas > 1,
    )
    return total + sum(further) * _COMMUNICATOR + _neighbours(setting)


def _neighbours(setting: Setting) -> int:
    """Bytes of the communicators with the ranks before and after in the pipeline."""
    if setting.executor == "upstream":  # whose messages go over the pipeline's own
        return 0
    nearby = setting.stage_ranks < setting.ranks_per_node
    return min(2, setting.pipeline - 1) * (_PAIR if nearby else _NEIGHBOUR)


def messages(setting: Setting) -> int:
    """Bytes of activations and gradients between stages: one each way that leaves and arrives."""
    if setting.pipeline == 1:
        return 0
    return 4 * setting.tokens_split * setting.model.hidden_size * setting.width


def _copies(setting: Setting, parts: int) -> float:
    """How many of so many equal parts of the experts a token goes to, on average."""
    model = setting.model
    return bins_hit(
        model.num_moe_experts or 0,
        model.moe_router_topk or 0,
        model.moe_router_num_groups or 1,
        model.moe_router_group_topk or 1,
        parts,
    )


def _deepep(setting: Setting) -> int:
    """DeepEP's own buffers, of its configurations for training (its csrc/config.hpp).

    20 multiprocessors make 10 channels, each with room for 288 tokens of every peer in the node,
    and, both ways, for 128 of every other node; a token comes with 128 indices, weights and scales.
    """
    token = setting.model.hidden_size * 2 + 128 * (8 + 4 + 4)
    nvlink = 10 * min(setting.expert, _NVLINK_PEERS) * 288 * token
    nodes = setting.expert // _NVLINK_PEERS
    return nvlink + (2 * 10 * nodes * 128 * token if nodes > 1 else 0)


def _hybridep(setting: Setting) -> int:
    """HybridEP's buffer (DeepEP, csrc/hybrid_ep): all tokens of the group, should one rank get all.

    Each in BF16, with a scale of 128 values and a probability for each expert of the domain.
    """
    model = setting.model
    experts = setting.local_experts * min(setting.expert, setting.nvlink_domain)
    token = model.hidden_size * 2 + model.hidden_size // 128 * 4 + experts * 4
    return setting.tokens_split * setting.expert * token
