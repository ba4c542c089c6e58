"""Streams for chunks: who has them, and what two pools of memory cost. What they are for is in
test_streams.py."""

import pytest
import torch

from dsv3_plugin.pipeline.chunk_streams import ChunkStreams
from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, WEIGHT, Schedule
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.forward_only import forward_only
from dsv3_plugin.schedules.messages import message_steps
from dsv3_plugin.schedules.one_f_one_b_v import one_f_one_b_v
from dsv3_plugin.schedules.placement import placement_of
from tests.streams import Device
from tests.watched import watching


def test_chunks_have_streams_once_there_are_pairs_and_a_gpu():
    ramp, pairs = (
        message_steps(schedule)[0] for schedule in (one_f_one_b_v(2, 4), dualpipe_v(2, 4))
    )
    evaluation = message_steps(forward_only(placement_of(dualpipe_v(2, 4)), 3))[0]
    assert ChunkStreams().for_steps(pairs, 2) == [None, None]  # on a CPU
    with watching(Device(lambda *_: torch.empty(1))):
        streams = ChunkStreams()
        assert streams.for_steps(ramp, 2) == [None, None]
        first, second = streams.for_steps(pairs, 2)
        assert None not in (first, second)
        assert first is not second
        assert streams.for_steps(evaluation, 2) == [first, second]
        assert ChunkStreams().for_steps(pairs, 1) == [None]  # whose pairs are of it with itself


@pytest.mark.parametrize("schedule", [dualpipe_v(4, 10), dualpipe_v(16, 60), dualpipe(8, 20)])
def test_the_pools_of_two_chunks_hold_what_one_would(schedule: Schedule):
    for rank, stages in enumerate(placement_of(schedule).chunks):
        held, fullest, together = dict.fromkeys(stages, 0), dict.fromkeys(stages, 0), 0
        for of, _, part in schedule.parts():
            if of == rank:
                held[part.stage] += {FORWARD: 1, BACKWARD: -1, WEIGHT: -1}.get(part.kind, 0)
                fullest[part.stage] = max(fullest[part.stage], held[part.stage])
                together = max(together, sum(held.values()))
        assert sum(fullest.values()) == together
