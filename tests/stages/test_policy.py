"""Who judges what the model has answered."""

from types import SimpleNamespace

import pytest
from megatron.core.parallel_state import RankGenerator

from dsv3_plugin.stages.policy import judges


@pytest.mark.parametrize(("pipeline", "data"), [(1, 4), (2, 2), (4, 3)])
def test_those_judge_who_are_first_in_their_pipelines(pipeline: int, data: int) -> None:
    """As upstream numbers ranks."""
    order = RankGenerator(tp=1, ep=1, dp=data, pp=pipeline, cp=1, order="tp-cp-ep-dp-pp")
    parallel = SimpleNamespace(processes=pipeline * data, pipeline=pipeline)
    recipe = SimpleNamespace(parallel=parallel)
    found = {rank for rank in range(pipeline * data) if judges(recipe, rank)}
    assert found == {ranks[0] for ranks in order.get_ranks("pp")}
