"""What ranks have room for beside their states: what a search of schedules may fill."""

from collections.abc import Sequence

from dsv3_plugin.planner.cluster import Cluster
from dsv3_plugin.planner.memory.activations import stage_bytes
from dsv3_plugin.planner.memory.peak import Moment, RankOrder
from dsv3_plugin.planner.memory.ranks import rank_memory
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.schedules.placement import Placement


def shares_of_room(
    setting: Setting, cluster: Cluster, stages: Sequence[Stage], placement: Placement
) -> tuple[float, ...] | None:
    """Of each stage, what a micro-batch's activations take of the room that its rank has for them.

    The room is what the rank's states, its buffers and what a layer works with leave of a device.
    Weight gradients that are put off are taken to keep all until they are computed.

    Args:
        setting: how the model is trained.
        cluster: on whose devices.
        stages: of the model, in its order.
        placement: which rank holds which of them.

    Returns:
        None where a rank has no room for one micro-batch.
    """
    shares = [0.0] * len(stages)
    for chunks in placement.chunks:
        held = tuple(stages[placement.model_stage(stage)] for stage in chunks)
        each = [stage_bytes(setting, stage) for stage in held]
        nothing = (0,) * len(held)
        working = RankOrder(
            moments=tuple(
                Moment(nothing, nothing, nothing, forward, backward, whole=True)
                for forward in range(len(held))
                for backward in range(len(held))
            ),
            micro_batches=nothing,
            pairs=True,
        )
        on_gpu = cluster.host == "gpu"
        besides = rank_memory(setting, held, working, on_gpu).moments["step"]
        room = cluster.memory_bytes - besides
        kept = [stage.layers + stage.logits for stage in each]
        if room < sum(kept):
            return None
        for stage, size in zip(chunks, kept, strict=True):
            shares[placement.model_stage(stage)] = size / room
    return tuple(shares)
