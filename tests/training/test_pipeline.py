"""Whole training runs under pipeline schedules: the same numbers as one process.

The oracle is a run of one process, whose loop is upstream's without a pipeline. All runs begin with
the same weights. FP32; sums over micro-batches run in another order, and steps of Adam let the
difference grow.
"""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dsv3_plugin.checkpoint.tracker import newest_complete
from dsv3_plugin.recipe.stage_layout import expand
from dsv3_plugin.schedules.actions import csv_text
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from tests.gloo_ranks import run_ranks
from tests.small_runs import Command, records, steps_taken, write_recipe
from tests.training import trainer_ranks

FEW, ALL = 5, 22
Numbers = dict[tuple[int, str], float]
KEYS = ("loss", "mtp_loss", "balance_loss", "grad_norm", "validation_loss")

CASES = {
    "dualpipe_v": (2, ALL, ["pipeline.schedule=dualpipe_v"]),
    "dualpipe_v with experts in parallel": (
        4,
        FEW,
        ["pipeline.schedule=dualpipe_v", "parallel.expert=2"],
    ),
    "1f1b, ours": (2, FEW, ["pipeline.schedule=1f1b", "pipeline.executor=ours"]),
    "1f1b, upstream's": (2, FEW, ["pipeline.schedule=1f1b"]),
    "interleaved, ours": (
        2,
        FEW,
        ["pipeline.schedule=interleaved", "pipeline.virtual_stages=2", "pipeline.executor=ours"],
    ),
    "interleaved, upstream's": (
        2,
        FEW,
        ["pipeline.schedule=interleaved", "pipeline.virtual_stages=2"],
    ),
    "search, balanced": (2, FEW, ["pipeline.schedule=search", "pipeline.layout=balanced"]),
    "a V from a file, laid out unevenly": (
        2,
        FEW,
        ["pipeline.schedule={v}", "pipeline.layout=Et|ttt|t|mL"],
    ),
    "a DualPipe from a file": (2, FEW, ["pipeline.schedule={dualpipe}"]),
}


class Runs:
    """Runs of one small recipe in one folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = write_recipe(folder)
        settings = yaml.safe_load(self.recipe.read_text())
        settings["model"] |= {"num_layers": 5, "moe_layer_freq": [0, 1, 1, 1, 1]}
        settings["training"] |= {"micro_batch_size": 1, "steps": ALL, "eval_interval": 5}
        settings["parallel"] = {"processes": 1, "timeout_minutes": 3.0}
        settings["checkpoint"] = {"interval": 100}
        settings["data"]["path"] = str(folder / "data")
        settings["curves"]["batch_size"] = 8
        self.recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
        self.files = {}
        for name, schedule in (("v", dualpipe_v(2, 8)), ("dualpipe", dualpipe(2, 8))):
            self.files[name] = folder / f"{name}.csv"
            self.files[name].write_text(csv_text(schedule.rows), encoding="utf-8")
        self._started = 0

    def go(self, name: str, world: int, until: int, *overrides: str) -> Numbers:
        """Go on with a run until a step; the numbers of all its steps so far."""
        self._started += 1
        scratch = self.folder / f"ranks{self._started}"
        scratch.mkdir()
        arguments = [
            f"directory={self.folder / name}",
            f"parallel.processes={world}",
            *(text.format(**self.files) for text in overrides),
        ]
        if until < ALL:
            arguments.append(f"megatron_args.exit-interval={until}")
        run_ranks(
            world, trainer_ranks.train, self.recipe, arguments, scratch=scratch, timeout_s=180
        )
        return {
            (line["iteration"], key): line[key]
            for line in records(self.folder / name)
            for key in KEYS
            if key in line
        }

    def copy(self, name: str, new: str) -> None:
        """Begin a run where another stands."""
        shutil.copytree(self.folder / name, self.folder / new)


def difference(numbers: Numbers, expected: Numbers, *keys: str) -> float:
    """The largest relative difference of all numbers, or of those of some keys."""
    assert numbers.keys() == expected.keys()
    chosen = [at for at in expected if at[1] in (keys or KEYS)]
    return max(abs(numbers[at] / expected[at] - 1) for at in chosen)


def upto(numbers: Numbers, step: int) -> Numbers:
    return {at: value for at, value in numbers.items() if at[0] <= step}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def alone(runs: Runs) -> Numbers:
    """The numbers of one process."""
    return runs.go("alone", 1, ALL)


@pytest.fixture(scope="module")
def case(runs: Runs, alone: Numbers) -> Callable[[str], Numbers]:
    """The numbers of a case, run when first asked for; the data are there by then."""
    known: dict[str, Numbers] = {}

    def numbers(name: str) -> Numbers:
        if name not in known:
            world, until, overrides = CASES[name]
            known[name] = runs.go(name, world, until, "pipeline.devices=2", *overrides)
        return known[name]

    return numbers


@pytest.mark.parametrize("name", CASES)
def test_every_number_is_that_of_one_process(
    name: str,
    alone: Numbers,
    case: Callable[[str], Numbers],
    record_property: Callable[[str, object], None],
) -> None:
    _, until, _ = CASES[name]
    for key in KEYS:
        worst = difference(case(name), upto(alone, until), key)
        record_property(f"largest relative difference of {key}", worst)
        print(f"{name}, {key}: {worst:.1e}")
    few = min(until, FEW)
    assert difference(upto(case(name), few), upto(alone, few)) < 1e-5
    losses = "loss", "mtp_loss", "validation_loss"
    assert difference(case(name), upto(alone, until), *losses) < 1e-4


def test_a_run_keeps_the_layout_that_it_runs(runs: Runs, case: Callable[[str], Numbers]) -> None:
    case("search, balanced")
    kept = yaml.safe_load((runs.folder / "search, balanced" / "recipe.yaml").read_text())
    assert expand(kept["pipeline"]["layout"]).count("|") == 3


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved"])
def test_our_executor_gives_what_upstreams_schedule_gives(
    schedule: str, case: Callable[[str], Numbers]
) -> None:
    # Upstream runs the backwards of a stage in the same order: one kernel, one result.
    ours, upstreams = case(f"{schedule}, ours"), case(f"{schedule}, upstream's")
    assert difference(ours, upstreams) < 1e-6


def test_a_checkpoint_of_any_schedule_goes_on_under_any_other(runs: Runs) -> None:
    zero1 = "parallel.zero1=true"
    runs.go("chain", 1, 2, zero1)
    runs.copy("chain", "unbroken")
    two = "pipeline.devices=2"
    runs.go("chain", 2, 4, zero1, two, "pipeline.schedule=dualpipe")
    runs.go("chain", 4, 6, zero1, two, "pipeline.schedule=dualpipe_v")
    chained = runs.go("chain", 1, 8, zero1)
    worst = difference(chained, runs.go("unbroken", 1, 8, zero1))
    print(f"chain: {worst:.1e}")
    assert worst < 1e-4


@pytest.mark.parametrize("zero1", ["false", "true"])
def test_a_run_whose_first_stage_has_no_experts_goes_on(
    runs: Runs, alone: Numbers, zero1: str
) -> None:
    """As the unstopped run of one process: its optimizers of experts are at the step of the rest,
    though the rank that writes what all have in common has none."""
    division = ["pipeline.devices=2", "pipeline.schedule=1f1b", "pipeline.layout=Et|ttttmL"]
    name = f"dense first, zero1 {zero1}"
    for step in (1, 3):
        numbers = runs.go(name, 2, step, *division, f"parallel.zero1={zero1}")
    assert difference(numbers, upto(alone, 3)) < 1e-5


def test_after_the_loss_of_a_rank_the_run_goes_on_from_a_whole_checkpoint(runs: Runs) -> None:
    folder = runs.folder / "lost"
    pipeline = ["pipeline.devices=2", "pipeline.schedule=dualpipe_v"]
    arguments = [
        "train", runs.recipe, f"directory={folder}", "parallel.processes=2", *pipeline,
        "pipeline.timeout=10", "training.steps=2000", "training.eval_interval=2000",
        "checkpoint.interval=4",
    ]  # fmt: skip

    stopped = Command.forked(*arguments).when(lambda: steps_taken(folder) >= 5)
    ended = stopped.send(signal.SIGSTOP, to=stopped.ranks[1]).end()
    assert ended.code == 2, ended.output
    sentence = ended.output.splitlines()[-1]
    saved = newest_complete(folder / "checkpoints")
    assert saved is not None
    assert saved.iteration >= 4
    assert sentence.startswith("dsv3: step "), sentence
    assert ": rank 0 lost rank 1 during " in sentence
    assert f"; the checkpoint of step {saved.iteration:,} is whole" in sentence

    before = steps_taken(folder)
    killed = Command.forked(*arguments).when(lambda: steps_taken(folder) > before)
    ended = killed.send(signal.SIGKILL, to=killed.ranks[1]).end()
    assert ended.code == 1
    assert "rank 1 was killed by signal 9 (SIGKILL)" in ended.output
    saved = newest_complete(folder / "checkpoints")
    assert saved is not None
    # One process loads it, and finds what the ranks had left.
    numbers = runs.go(
        "lost", 1, saved.iteration + 1, "training.steps=2000", "checkpoint.interval=2"
    )
    assert (saved.iteration + 1, "loss") in numbers
