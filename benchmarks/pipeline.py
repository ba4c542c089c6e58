"""Every schedule for real, on stages that sleep instead of computing: does it take what we say?

    python benchmarks/pipeline.py [--pp 8] [--micro-batches 20] [--unit 0.1]

Eight ranks fit two cores, because a sleeping stage needs none. The executor, its messages over gloo
and its overlapped pairs are the real ones; a stage sleeps F = 1 unit forward, I = W = 1 backward
(divided by the stages a rank holds), a quarter of F and an eighth of the backward of which are an
exchange on the link, so that a pair takes FB = 2.5 where the exchanges hide behind the partner.
Printed beside the simulator's numbers, all schedules in one run.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from rich.console import Console
from rich.table import Table

from dsv3_plugin.upstream import cpu_host

cpu_host.enable()

from dsv3_plugin.distributed.overlap import wait  # noqa: E402
from dsv3_plugin.model.linear import WeightGradients  # noqa: E402
from dsv3_plugin.schedules.actions import Schedule  # noqa: E402
from dsv3_plugin.schedules.costs import Costs, even_stages  # noqa: E402
from dsv3_plugin.schedules.registry import SCHEDULES  # noqa: E402
from dsv3_plugin.schedules.search.search import search  # noqa: E402
from dsv3_plugin.schedules.simulate import simulate  # noqa: E402
from dsv3_plugin.schedules.zbv import zbv  # noqa: E402

SHAPE = (4, 1, 4)  # [s, b, h] of a message
HIDDEN = 0.25  # of a forward, and of a whole backward, in units: what a pair hides of each


class _Exchange:
    """A collective that takes a while."""

    def __init__(self, seconds: float) -> None:
        self._ready = time.perf_counter() + seconds

    def wait(self) -> None:
        time.sleep(max(0.0, self._ready - time.perf_counter()))


def _work(seconds: float, exchange: float) -> None:
    """Compute, exchange in the middle, compute."""
    half = (seconds - exchange) / 2
    time.sleep(half)
    wait(_Exchange(exchange))
    time.sleep(half)


class _Sleep(torch.autograd.Function):
    """A stage's computation."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, stage: "SleepingStage") -> torch.Tensor:
        ctx.stage = stage
        _work(stage.unit, HIDDEN * stage.unit)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        stage = ctx.stage
        if stage.weight_gradients.postpone:
            _work(stage.unit, 0.0)
            stage.weight_gradients.arrive([(stage.weight, stage.weight_gradient)])
        else:
            _work(2 * stage.unit, HIDDEN * stage.unit)
        return gradient, None


class SleepingStage(torch.nn.Module):
    """A model chunk, as far as the executor looks at it."""

    def __init__(self, first: bool, last: bool, unit: float, config: Any) -> None:
        super().__init__()
        self.pre_process, self.post_process, self.mtp_process = first, last, False
        self.unit, self.config = unit, config
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.weight_gradients = WeightGradients()
        self.input: torch.Tensor | None = None

    def weight_gradient(self, out: torch.Tensor | None) -> torch.Tensor:
        """Computed when it is asked for."""
        time.sleep(self.unit)
        return torch.zeros(1) if out is None else out

    def set_input_tensor(self, tensors: list[torch.Tensor | None]) -> None:
        """As upstream hands a chunk its input."""
        self.input = tensors[0]

    def forward(self) -> torch.Tensor:
        """Sleep, and pass the input on."""
        x = torch.ones(SHAPE, requires_grad=True) if self.pre_process else self.input
        return _Sleep.apply(x, self)


def _forward_step(iterator: Any, stage: SleepingStage) -> tuple[torch.Tensor, Any]:
    if stage.pre_process or stage.post_process:
        next(iterator)

    def loss(output: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return output.sum(), {"loss": output.sum().detach()}

    return stage(), loss


def _config() -> Any:
    return SimpleNamespace(
        timers=None,
        hidden_size=SHAPE[2],
        pipeline_dtype=torch.float32,
        deallocate_pipeline_outputs=False,
        calculate_per_token_loss=False,
        finalize_model_grads_func=None,
        enable_autocast=False,
        grad_scale_func=None,
        num_moe_experts=None,
        mtp_num_layers=None,
    )


def _rank(rank: int, schedules: list[Schedule], unit: float, folder: str) -> None:
    """One process: run every schedule, write what the slowest rank took."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    pp = schedules[0].pp
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=pp
    )
    from megatron.core import parallel_state

    from dsv3_plugin.pipeline import executor
    from dsv3_plugin.schedules.placement import placement_of

    parallel_state.initialize_model_parallel(pipeline_model_parallel_size=pp)
    results = []
    for schedule in schedules:
        placement = placement_of(schedule)
        share = pp / placement.depth
        config = _config()
        chunks = [
            SleepingStage(
                placement.model_stage(stage) == 0,
                placement.model_stage(stage) == placement.depth - 1,
                unit * share,
                config,
            )
            for stage in placement.chunks[rank]
        ]
        runner = executor.Executor(lambda count, schedule=schedule: schedule)
        runner.plan(schedule.num_micro_batches, False)
        measured = []
        for _ in range(3):
            torch.distributed.barrier()
            begin = time.perf_counter()
            runner(
                forward_step_func=_forward_step,
                data_iterator=[iter(range(10_000)) for _ in chunks],
                model=chunks,
                num_microbatches=schedule.num_micro_batches,
                seq_length=SHAPE[0],
                micro_batch_size=SHAPE[1],
            )
            took = torch.tensor([time.perf_counter() - begin])
            torch.distributed.all_reduce(took, op=torch.distributed.ReduceOp.MAX)
            measured.append(float(took) / unit)
        peak = torch.tensor([runner.peak_live * share / (2 if placement.copies == 2 else 1)])
        if placement.copies == 2:
            peak = torch.tensor([float(runner.peak_live)])
        torch.distributed.all_reduce(peak, op=torch.distributed.ReduceOp.MAX)
        results.append({"makespans": measured, "peak": float(peak)})
    if rank == 0:
        Path(folder, "results.json").write_text(json.dumps(results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main() -> None:
    """Run all schedules and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pp", type=int, default=8)
    parser.add_argument("--micro-batches", type=int, default=20)
    parser.add_argument("--unit", type=float, default=0.1, help="seconds")
    wanted = parser.parse_args()
    pp, count = wanted.pp, wanted.micro_batches
    costs = Costs()
    schedules = [
        kind.schedule(pp, count)
        for kind in SCHEDULES.values()
        if not kind.searched and kind.exists(pp, count)
    ]
    stages = even_stages(zbv(pp, count), costs)
    schedules.append(search(pp, count, stages, pp + 0.5).schedule)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (schedules, wanted.unit, folder), nprocs=pp)
        results = json.loads(Path(folder, "results.json").read_text())
    table = Table(title=f"P={pp}, M={count}, unit {wanted.unit * 1e3:.0f} ms, median of 3")
    for heading in ("schedule", "measured", "simulated", "ratio", "idle %", "peak activations"):
        table.add_column(heading, justify="left" if heading == "schedule" else "right")
    lines = []
    for schedule, result in zip(schedules, results, strict=True):
        timeline = simulate(schedule, even_stages(schedule, costs))
        measured = sorted(result["makespans"])[1]
        ratio = measured / timeline.makespan
        table.add_row(
            schedule.name,
            f"{measured:.1f}",
            f"{timeline.makespan:.1f}",
            f"{ratio:.3f}",
            f"{100 * timeline.idle_fraction:.2f}",
            f"{result['peak']:g}",
        )
        lines.append({"schedule": schedule.name, "measured": measured, "ratio": ratio})
    Console().print(table)
    print(json.dumps(lines))


if __name__ == "__main__":
    main()
