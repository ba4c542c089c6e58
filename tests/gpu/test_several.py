"""Several GPUs over NCCL: every division of the work has the losses of one GPU."""

import pytest

from dsv3_plugin.schedules.registry import SCHEDULES
from tests.gpu.trained import ON_GPU, ON_TRANSFORMER_ENGINE

NEAR = {"losses": 1e-4, "gradients": 1e-3}
"""FP32; sums over micro-batches and ranks in another order, which six steps of Adam let grow."""

pytestmark = pytest.mark.usefixtures("two_gpus")


@pytest.fixture(scope="module")
def one(start, two_gpus, tmp_path_factory):
    """The numbers of one GPU."""
    return start.train(tmp_path_factory.mktemp("one") / "run", *ON_GPU)


@pytest.mark.parametrize(
    "division",
    [
        "parallel={processes: 2}",
        "parallel={processes: 2, zero1: true}",
        "parallel={processes: 2, expert: 2}",
    ],
)
def test_data_and_experts_are_divided(start, one, new_folder, division):
    start.train(new_folder(), *ON_GPU, division).must_be(one, **NEAR)


def test_a_sequence_is_divided(start, one, new_folder):
    divided = "parallel={processes: 2, context: 2}"
    start.train(new_folder(), *ON_GPU, divided).must_be(one, **NEAR)


@pytest.mark.usefixtures("transformer_engine")
@pytest.mark.parametrize(
    "division",
    ["parallel={processes: 2, context: 2}", "parallel={processes: 2, context: 2, expert: 2}"],
)
def test_a_sequence_is_divided_over_ranks_with_transformer_engine(start, new_folder, division):
    """A group of heads after the other, over the keys of the whole sequence (te_attention.py)."""
    engine = (*ON_TRANSFORMER_ENGINE, "precision.dtype=bf16")
    expected = start.train(new_folder(), *engine)
    start.train(new_folder(), *engine, division).must_be(expected, losses=5e-3, gradients=5e-2)


@pytest.mark.parametrize("per_node", [1, 2])
def test_two_hop_dispatch_over_two_ranks(start, one, new_folder, per_node):
    two_hop = f"dispatch={{kind: two_hop, ranks_per_node: {per_node}}}"
    expert = "parallel={processes: 2, expert: 2}"
    start.train(new_folder(), *ON_GPU, expert, two_hop).must_be(one, **NEAR)


def test_under_torchrun(start, one, new_folder):
    launcher = ("torch.distributed.run", "--nproc-per-node=2", "-m")
    overrides = (*ON_GPU, "parallel={processes: 2, expert: 2}")
    start.train(new_folder(), *overrides, launcher=launcher).must_be(one, **NEAR)


def pipeline(schedule: str, devices: int, ranks: int) -> tuple[str, ...]:
    kind = SCHEDULES[schedule]
    virtual = ", virtual_stages: 2" if kind.takes_stages_per_rank else ""
    return (
        f"pipeline={{schedule: {schedule}, devices: {devices}{virtual}, executor: ours}}",
        f"parallel={{processes: {ranks}, expert: {ranks // devices}}}",
    )


PUBLISHED = [name for name in SCHEDULES if name != "search"]


@pytest.mark.parametrize("schedule", PUBLISHED)
def test_schedules_on_two_devices(start, one, new_folder, schedule):
    start.train(new_folder(), *ON_GPU, *pipeline(schedule, 2, 2)).must_be(one, **NEAR)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("schedule", PUBLISHED)
def test_schedules_on_four_devices(start, one, new_folder, schedule):
    start.train(new_folder(), *ON_GPU, *pipeline(schedule, 4, 4)).must_be(one, **NEAR)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("schedule", ["dualpipe", "dualpipe_v"])
def test_overlapped_pairs_that_hide_the_exchange_of_experts(start, one, new_folder, schedule):
    """Turns on two threads; see distributed/overlap.py."""
    start.train(new_folder(), *ON_GPU, *pipeline(schedule, 2, 4)).must_be(one, **NEAR)


@pytest.mark.usefixtures("four_gpus", "transformer_engine")
@pytest.mark.parametrize("schedule", ["dualpipe", "dualpipe_v"])
def test_overlapped_pairs_by_upstreams_plan(start, new_folder, schedule):
    """Two CUDA streams; see pipeline/chunk_plan.py."""
    engine = (*ON_TRANSFORMER_ENGINE, "precision.dtype=bf16")
    expected = start.train(new_folder(), *engine)
    got = start.train(new_folder(), *engine, *pipeline(schedule, 2, 4))
    got.must_be(expected, losses=5e-3, gradients=5e-2)
