"""The rehearsal: how long it takes, how near a real run it is, and what it says of many layouts.

    python benchmarks/rehearsal.py [--parts times memory searched published] [--only TEXT]

times: the full recipe, its configuration alone and with its ranks, by the clock and in CPU seconds.
memory: `tiny` rehearsed and trained for a step over gloo, rank by rank and part by part.
searched: what `dsv3 plan --search --write` writes for 256, 1024 and 2048 H100s and H800s.
published: the steps of published_steps.yaml, which all ran, at their fullest rank.

`times` and `memory` by default; the others take half an hour each on two cores. `--only` keeps the
rows with TEXT in their names. Prints a table as it goes, and one JSON line.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv3_plugin.planner.calibration.measured import Row, read_rows
from dsv3_plugin.planner.cluster import Cluster, load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rehearsal.children import devices, rehearsed
from dsv3_plugin.rehearsal.report import Request

PUBLISHED = Path(__file__).parent / "published_steps.yaml"
FULL = "pretrain/deepseek-v3"
CLUSTERS, SIZES = ("h100", "h800"), (256, 1024, 2048)
STAND_IN = "dispatch.kind=alltoall"
"""For DeepEP and HybridEP, whose Python is no package that could be installed beside this."""
STATES = ("weights", "gradients", "optimizer")
TINY = {
    "one process": (1, []),
    "P=2, EP 2, 1F1B": (4, ["parallel.pipeline=2", "parallel.expert=2"]),
    "P=2, EP 2, DualPipeV": (
        4,
        ["parallel.pipeline=2", "parallel.expert=2", "pipeline.schedule=dualpipe_v"],
    ),
}
"""Runs of `tiny`: ranks, and what is said of them."""


@dataclass(frozen=True)
class Said:
    """What a command said.

    Attributes:
        out, err: as it printed them.
        seconds: by the clock. cpu_seconds: of it and all processes that it waited for.
    """

    out: str
    err: str
    seconds: float
    cpu_seconds: float

    @property
    def refusal(self) -> str | None:
        """Why there is no answer."""
        return None if self.out.startswith("{") else self.err.strip() or self.out.strip()


def dsv3(*words: object) -> Said:
    """A verb in a process of its own."""
    began, before = time.perf_counter(), _cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "dsv3_plugin.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    return Said(done.stdout, done.stderr, seconds, _cpu_seconds() - before)


def _cpu_seconds() -> float:
    """Of all processes that ended and were waited for, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show_times(only: str) -> list[dict[str, Any]]:
    """The full recipe, half and whole."""
    print(f"\n{FULL:44}{'s':>8}{'CPU s':>8}   says")
    told = []
    for label, words in (
        ("configuration alone", ["--configuration"]),
        ("first, middle and last place", []),
        ("one rank of the middle", ["--ranks", 1024]),
    ):
        if only not in label:
            continue
        said = dsv3("rehearse", FULL, *words, "--json")
        print(
            f"{label:44}{said.seconds:8.1f}{said.cpu_seconds:8.1f}   {_verdict(said)}", flush=True
        )
        told.append({"what": label, "seconds": said.seconds, "cpu_seconds": said.cpu_seconds})
    return told


def _verdict(said: Said) -> str:
    """A rehearsal in a sentence: how it ended, and what stops it."""
    if said.refusal is not None:
        return said.refusal
    found = json.loads(said.out)
    stopping = [finding["sentence"] for finding in found["findings"] if finding["stops"]]
    return "; ".join(stopping) or "it would run"


def show_memory(only: str) -> list[dict[str, Any]]:
    """`tiny` rehearsed, and trained: MB of each rank's parts."""
    print(f"\n{'tiny, MB: rehearsed / trained':32}{'rank':>5}", end="")
    print("".join(f"{part:>18}" for part in (*STATES, "activations")), f"{'in all':>8}")
    told = []
    for label, (world, overrides) in TINY.items():
        if only not in label:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            told += _trained_and_rehearsed(label, world, overrides, Path(scratch))
    return told


def _trained_and_rehearsed(
    label: str, world: int, overrides: Sequence[str], scratch: Path
) -> list[dict[str, Any]]:
    # The means by which the tests measure a run.
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.gloo_ranks import run_ranks
    from tests.measured_memory import measured
    from tests.small_runs import write_recipe

    recipe = write_recipe(scratch)
    words = [
        "model=tiny",
        f"directory={scratch}/run",
        f"parallel.processes={world}",
        "training.micro_batch_size=1",
        "parallel.expert=1",
        f"curves.batch_size={2 * world}",
        *overrides,
    ]
    built = dsv3("data", "build", recipe, *words)
    assert "Traceback" not in built.err, built.err
    trained = run_ranks(world, measured, recipe, words, scratch=scratch)
    loaded = load_recipe(recipe, words)
    micro_batches = 2 * world // loaded.data_parallel
    requests = [
        Request(str(recipe), tuple(words), "cpu", rank, micro_batches) for rank in range(world)
    ]
    told = []
    for report in rehearsed(requests, devices(load_cluster("cpu"), on_gpu=False)):
        assert report.memory, report.findings
        held = {part: trained[report.rank][part] for part in STATES}
        held["activations"] = trained[report.rank]["most"]
        seen = {part: report.states[part] for part in STATES}
        seen["activations"] = report.moments["step"] - sum(seen.values())
        error = sum(seen.values()) / sum(held.values()) - 1
        cells = (f"{f'{seen[part] / 1e6:.2f} / {held[part] / 1e6:.2f}':>18}" for part in seen)
        print(f"{label:32}{report.rank:5}{''.join(cells)}{error:+9.1%}", flush=True)
        told.append({"run": label, "rank": report.rank, "rehearsed": seen, "trained": held})
    return told


_RANK = 30
"""Columns of a rank's numbers."""
_HEAD = f"{'rank':>6}{'GB':>8}{'planned':>9}{'card':>7}{'s':>7}{'CPU s':>7}   says"


def show_searched(only: str) -> list[dict[str, Any]]:
    """What a search writes for as many devices, at the first, a middle and the last place."""
    print(f"\n{'searched':20}{_HEAD}")
    told = []
    with tempfile.TemporaryDirectory() as scratch:
        for cluster in CLUSTERS:
            for processes in SIZES:
                label = f"{processes} {cluster}"
                if only not in label:
                    continue
                written = Path(scratch) / f"{cluster}-{processes}.yaml"
                among = (f"parallel.processes={processes}", "--cluster", cluster)
                found = dsv3("plan", FULL, *among, "--search", "--write", written)
                if not written.exists():
                    print(f"{label:20}{found.err.strip()}", flush=True)
                    continue
                said = dsv3("rehearse", written, "--json")
                told.append({"run": label} | _shown(label, 20, said))
    return told


def show_published(only: str) -> list[dict[str, Any]]:
    """What ran, at the rank that is planned to be fullest."""
    print(f"\n{'published':46}{_HEAD}")
    told = []
    for row in read_rows(PUBLISHED):
        label = row.name or row.recipe
        if only not in label:
            continue
        assert row.cluster is not None
        recipe, words = _recipe(row), [*row.overrides]
        if load_recipe(recipe, words).dispatch.kind in ("deepep", "hybridep"):
            words.append(STAND_IN)
        rank = _fullest(recipe, words, load_cluster(row.cluster))
        said = dsv3("rehearse", recipe, *words, "--cluster", row.cluster, "--ranks", rank, "--json")
        told.append({"run": label} | _shown(label, 46, said))
    return told


def _recipe(row: Row) -> str:
    """Its name, or where its file lies."""
    file = PUBLISHED.parent / row.recipe
    return str(file) if file.is_file() else row.recipe


def _fullest(name: str, overrides: Sequence[str], cluster: Cluster) -> int:
    """A rank at the place that needs most."""
    recipe = load_recipe(name, overrides, cluster.machine)
    place = make_plan(recipe, cluster, cluster.machine).phases[-1].fullest.pipeline_rank
    return place * (recipe.parallel.processes // recipe.parallel.pipeline)


def _shown(label: str, width: int, said: Said) -> dict[str, Any]:
    """Print how a rehearsal ended, and each rank that it stepped; its numbers."""
    numbers: dict[str, Any] = {"seconds": said.seconds, "cpu_seconds": said.cpu_seconds}
    times = f"{said.seconds:7.0f}{said.cpu_seconds:7.0f}"
    print(f"{label:{width}}{'':{_RANK}}{times}   {_verdict(said)}", flush=True)
    if said.refusal is None:
        found = json.loads(said.out)
        numbers["would_run"] = found["would_run"]
        numbers["ranks"] = [
            _of_rank(rank, width) for rank in found["ranks"] if any(rank["states"].values())
        ]
    return numbers


def _of_rank(rank: dict[str, Any], width: int) -> dict[str, Any]:
    seen, planned = (sum(rank[key].values()) for key in ("memory", "planned"))
    cells = f"{rank['rank']:6}{seen / 1e9:8.1f}{planned / 1e9:9.1f}{rank['card'] / 1e9:7.1f}"
    print(f"{'':{width}}{cells}{'':14}   {rank['schedule']}", flush=True)
    taken = {key: rank[key] for key in ("rank", "schedule", "card")}
    return taken | {"bytes": seen, "planned": planned}


PARTS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    "times": show_times,
    "memory": show_memory,
    "searched": show_searched,
    "published": show_published,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["times", "memory"])
    parser.add_argument("--only", default="", metavar="TEXT", help="rows with it in their names")
    options = parser.parse_args()
    print(json.dumps({part: PARTS[part](options.only) for part in options.parts}))


if __name__ == "__main__":
    main()
