"""What a schedule may keep on a rank is what the device has beside everything else."""

from dataclasses import replace

import pytest

from dsv3_plugin.planner.memory.activations import stage_bytes
from dsv3_plugin.planner.memory.peak import rank_orders
from dsv3_plugin.planner.memory.ranks import rank_memory
from dsv3_plugin.planner.memory.room import shares_of_room
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from tests.planner.settings import steps_of

STEPS = steps_of("pretrain/deepseek-v3")


def test_a_schedule_that_fills_its_room_fills_the_device():
    """DualPipeV keeps both chunks' activations: their shares add up to what a rank then holds."""
    setting, cluster, placement = STEPS.setting, STEPS.cluster, STEPS.placement
    shares = shares_of_room(setting, cluster, STEPS.stages, placement)
    orders = rank_orders(dualpipe_v(16, 80), placement)
    for chunks, order in zip(placement.chunks, orders, strict=True):
        stages = tuple(STEPS.stages[stage] for stage in chunks)
        held = rank_memory(setting, stages, order, on_gpu=True).moments["step"]
        filled = max(
            sum(number * shares[stage] for number, stage in zip(moment.kept, chunks, strict=True))
            for moment in order.moments
        )
        # What is idle or owed is not in it, nor which layer works when.
        assert held / cluster.memory_bytes == pytest.approx(
            1 - (1 - filled) * _room(stages) / cluster.memory_bytes, rel=0.05
        )


def _room(stages) -> float:
    """Bytes that one whole share is."""
    shares = shares_of_room(STEPS.setting, STEPS.cluster, STEPS.stages, STEPS.placement)
    stage = next(stage for stage in stages if stage.layers)
    each = stage_bytes(STEPS.setting, stage)
    return (each.layers + each.logits) / shares[STEPS.stages.index(stage)]


def test_where_nothing_is_left_there_is_no_room():
    setting = replace(STEPS.setting, expert=1, zero1=False)
    assert shares_of_room(setting, STEPS.cluster, STEPS.stages, STEPS.placement) is None
