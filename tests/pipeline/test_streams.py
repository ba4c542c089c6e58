"""Pairs on the streams of a GPU: no two kernels race, and no side waits for the other's messages.

The executor runs a step of a small model with experts on two ranks, dispatched by two hops, with a
shared expert, owed weight gradients and pairs. Two chunks are on one rank here, so that two
processes are enough.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch

from dsv3_plugin.schedules.actions import Schedule, compute_only, parse_csv
from tests.dispatch.test_schedules import SEQ, TWO_HOP, batches, build_chunks
from tests.gloo_ranks import run_ranks
from tests.staged_model import forward_step
from tests.streams import Device, Race
from tests.watched import Work, watching

PAIRS = """\
0F0,1F0,0F1,1I0,1W0,(1F1;0B0)OVERLAP_F_B,(0F2;1B1)OVERLAP_F_B,(1F2;0B1)OVERLAP_F_B,1B2,0I2,0W2
"""
SECONDS = {"product": 1.0, "all_to_all_single": 5.0}


@dataclass(frozen=True)
class Seen:
    """Of a `Device`, after a step."""

    races: list[Race]
    products: dict[str, int]
    host_waited: list[tuple[str, int]]
    seconds: float

    @property
    def rules(self) -> set[str]:
        return {race.rule for race in self.races}


Change = Callable[[Device], contextlib.AbstractContextManager[Any]]


def one_stream(device: Device) -> contextlib.AbstractContextManager[Any]:
    """All chunks compute on the stream of the executor."""
    from dsv3_plugin.pipeline.chunk_streams import ChunkStreams

    return mock.patch.object(ChunkStreams, "for_steps", return_value=[None, None])


def one_workspace(device: Device) -> contextlib.AbstractContextManager[Any]:
    """Transformer Engine's, one per device."""
    return mock.patch.object(device, "workspace", per_device)


@contextlib.contextmanager
def upstreams_stream(device: Device) -> Iterator[None]:
    """The shared expert computes where upstream's does."""
    from megatron.core.transformer.moe.shared_experts import SharedExpertMLP

    from dsv3_plugin.dispatch.shared_expert import SharedExpertInSteps

    with (
        one_stream(device),
        one_workspace(device),
        mock.patch.multiple(
            SharedExpertInSteps,
            stream=device.new_stream(),
            wait_current_stream=SharedExpertMLP.wait_current_stream,
        ),
    ):
        yield


@contextlib.contextmanager
def unordered(device: Device) -> Iterator[None]:
    """Nothing waits at the begin and the end of a computation."""
    nothing = contextlib.nullcontext()
    with (
        mock.patch("dsv3_plugin.pipeline.tasks.beside", return_value=nothing),
        mock.patch("dsv3_plugin.pipeline.rank_step.beside", return_value=nothing),
    ):
        yield


def every_forward_scales(device: Device) -> contextlib.AbstractContextManager[Any]:
    """Upstream's way of handing the scale of a loss to the backwards."""
    return mock.patch("dsv3_plugin.distributed.overlap.in_a_pair", return_value=False)


def counts_unwaited(device: Device) -> contextlib.AbstractContextManager[Any]:
    """The host reads what it has not waited for."""
    return mock.patch("dsv3_plugin.distributed.on_host.OnHost.wait")


@contextlib.contextmanager
def counts_behind_the_other(device: Device) -> Iterator[None]:
    """The host copies the counts on the one stream that computes."""

    class Copied:
        def __init__(self, arriving: torch.Tensor, work: Any) -> None:
            self._arriving, self._work = arriving, work

        def wait(self) -> None:
            self._work.wait()
            self.tensor = self._arriving.cpu()

    with one_stream(device), mock.patch("dsv3_plugin.dispatch.link.OnHost", Copied):
        yield


def hops_the_host_waits_for(device: Device) -> contextlib.AbstractContextManager[Any]:
    """The thread has waited for a collective, the stream has not."""
    from dsv3_plugin.distributed import overlap

    def wait(work: Any) -> None:
        overlap.wait(work.real if isinstance(work, Work) else work)

    return mock.patch("dsv3_plugin.dispatch.link.wait", wait)


WAYS: dict[str, Change] = {
    "ours": lambda device: contextlib.nullcontext(),
    **{
        change.__name__: change
        for change in (
            one_stream,
            one_workspace,
            upstreams_stream,
            unordered,
            every_forward_scales,
            counts_unwaited,
            counts_behind_the_other,
            hops_the_host_waits_for,
        )
    },
}


@functools.cache
def per_device(device: int, ub: bool, grouped_gemm: bool) -> torch.Tensor:
    """A workspace as Transformer Engine makes it."""
    return torch.empty(1, dtype=torch.uint8)


@contextlib.contextmanager
def two_chunks_on_a_rank(schedule: Schedule) -> Iterator[Any]:
    """Upstream's groups for one pipeline rank by two expert-parallel ones."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from dsv3_plugin.schedules.placement import placement_of

    parallel_state.initialize_model_parallel(
        expert_model_parallel_size=2, get_embedding_ranks=lambda ranks: [ranks[0]]
    )
    # Upstream sets it for pipelines of two and more.
    parallel_state.set_virtual_pipeline_model_parallel_world_size(2)
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    yield placement_of(schedule)
    parallel_state.destroy_model_parallel()


def step(schedule: Schedule, change: Change) -> Seen:
    """A step of the executor."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from dsv3_plugin.pipeline.executor import Executor
    from dsv3_plugin.upstream.cublas_workspace import get_cublas_workspace

    per_device.cache_clear()
    device = Device(get_cublas_workspace(per_device), SECONDS)
    with two_chunks_on_a_rank(schedule) as placement:
        chunks = build_chunks(schedule, placement, TWO_HOP)
        wrapped = [
            DistributedDataParallel(chunk.config, DistributedDataParallelConfig(), chunk)
            for chunk in chunks
        ]
        for chunk in wrapped:
            chunk.zero_grad_buffer()
        count = schedule.num_micro_batches
        with watching(device), change(device):
            Executor(lambda _: schedule)(
                forward_step_func=forward_step,
                data_iterator=[batches(count) for _ in wrapped],
                model=wrapped,
                num_microbatches=count,
                seq_length=SEQ,
                micro_batch_size=1,
            )
    return Seen(list(device.races), dict(device.products), device.host_waited, device.seconds)


def every_way(rank: int) -> dict[str, Seen]:
    from dsv3_plugin.training.patches import TABLE
    from dsv3_plugin.upstream import patching

    patching.apply(TABLE)
    schedule = compute_only("pairs", parse_csv(PAIRS, "pairs"))
    return {way: step(schedule, change) for way, change in WAYS.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Seen]]:
    return run_ranks(2, every_way, scratch=tmp_path_factory.mktemp("ranks"), timeout_s=120)


def test_no_two_kernels_of_a_step_race(ranks) -> None:
    for seen in ranks:
        assert seen["ours"].races == []
        assert len(seen["ours"].products) == 2  # streams that multiply: one of each chunk
        assert seen["one_stream"].races == []
        assert len(seen["one_stream"].products) == 1


def test_upstreams_second_stream_shares_the_workspace_and_frees_under_the_other(ranks) -> None:
    for seen in ranks:
        found = seen["upstreams_stream"]
        assert found.rules == {"workspace", "freed"}
        # A weight gradient that was owed reads what the second stream gives its next tensor.
        owed = [race.first for race in found.races if race.rule == "freed"]
        assert "addmm_ on main" in owed


@pytest.mark.parametrize(
    ("way", "rules"),
    [
        ("one_workspace", {"workspace"}),
        ("unordered", {"access"}),
        ("every_forward_scales", {"access"}),
        ("counts_unwaited", {"host", "freed"}),
        ("hops_the_host_waits_for", {"access", "freed"}),
    ],
)
def test_what_is_left_out_is_found(ranks, way: str, rules: set[str]) -> None:
    for seen in ranks:
        assert rules <= seen[way].rules


def test_no_side_stalls_with_the_other(ranks) -> None:
    for seen in ranks:
        assert seen["ours"].seconds < 0.95 * seen["one_stream"].seconds


def test_the_host_waits_for_the_counts_and_not_for_the_other_side(ranks) -> None:
    def behind(found: Seen, what: str) -> set[bool]:
        """Whether the device had anything to do when the host had waited."""
        return {running > 0 for name, running in found.host_waited if name == what}

    for seen in ranks:
        assert behind(seen["ours"], "Event.synchronize") == {True}
        # On one stream the other side's kernels stand behind the counts, where there are any.
        assert True in behind(seen["one_stream"], "Event.synchronize")
        assert behind(seen["counts_behind_the_other"], "cpu") == {False}
        assert not {name for name, _ in seen["ours"].host_waited} & {"cpu", "tolist"}
