"""Repeated blocks are schedules, and hold as little as the paper says."""

import pytest

from dsv3_plugin.schedules.costs import Costs, even_stages
from dsv3_plugin.schedules.search.building_blocks import blocks, repeated
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.validate import validate
from tests.schedules.search.problems import of_rows


@pytest.mark.parametrize("pp", [4, 6])
def test_repeated_blocks_are_valid_and_reach_a_third_of_the_memory(pp):
    """The paper's V-Min holds (P + 4) / 3 micro-batches."""
    peaks = {}
    for number, block in enumerate(blocks(pp)):
        leanest = max(block.memory(rank, 0.5, 0.5) for rank in range(pp))
        if number % 197 and leanest > (pp + 4) / 3:
            continue
        schedule = of_rows(repeated(block, pp, 3 * pp))
        validate(schedule)
        peaks[block] = max(simulate(schedule, even_stages(schedule, Costs())).peak_activations)
        assert peaks[block] <= leanest + 1.0
    assert min(peaks.values()) <= (pp + 4) / 3
