"""Reinforcement learning in small: rl/tiny from its parent, by several seeds, beside fine-tuning.

    python benchmarks/rl.py [--folder runs/rl_benchmark] [--seeds 1 2 3] [--as recipe gspo openai]

Trains `recipes/rl/tiny.yaml` once for each seed, from the one parent that it makes first, and
fine-tunes that parent further on what its teacher says, for as many seconds of CPU as the first of
these took: what the same time is worth without rewards. All of it goes through `dsv3 train`.

`--as` trains otherwise as well, or alone: `gspo` by ratios of whole answers, `openai` by answers of
`dsv3 serve` beside the run, `async` by answers that are a round old, `openai_async` by both,
`partial` by answers that are made in two rounds and more, `openai_partial` by those of a server,
`curriculum` on problems that are neither too hard nor too easy by then, `hot` by answers drawn at a
temperature of 1.3, `drafts` with a token guessed ahead by multi-token prediction, `frozen_drafts`
by one that does not learn the answers.

What is there already in the folder is not done again. Prints a table, the curve of held-out rewards
and a JSON line. Seconds of CPU are those of a run's processes together, so that they do not depend
on what else the machine does; the minutes on the clock do.
"""

import argparse
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe.load import load_recipe

RECIPE, PARENT = "rl/tiny", "rl/tiny-sft"
REWARD = "rl/held_out_reward"
_ACCEPTED = "rl/acceptance_1"

WAYS = {
    "recipe": (),
    # Two steps of a round, without which every ratio is 1. The paper's clips are for answers of
    # thousands of tokens; of these, of two or three, a mean is about as far as a token.
    "gspo": (
        "grpo.importance=sequence", "grpo.aggregation=sequence_mean", "grpo.mini_batches=2",
        "training.steps=240", "training.eval_interval=20",
    ),
    "openai": ("rollouts.kind=openai", "rollouts.key_variable=DSV3_API_KEY"),
    "async": ("rollouts.async=1",),
    "openai_async": (
        "rollouts.kind=openai", "rollouts.key_variable=DSV3_API_KEY", "rollouts.async=1",
    ),
    "partial": ("rollouts.partial=1",),
    "openai_partial": (
        "rollouts.kind=openai", "rollouts.key_variable=DSV3_API_KEY", "rollouts.partial=1",
    ),
    "curriculum": ("rollouts.curriculum={low: 0.2, high: 0.8, again: 0.1}",),
    "hot": ("rollouts.temperature=1.3",),
    "drafts": ("rollouts.drafts=1",),
    "frozen_drafts": ("rollouts.drafts=1", "mtp=freeze"),
}  # fmt: skip
"""Overrides of the recipe, by their name."""
_KEY = "of the benchmark alone"


def train(recipe: str, folder: Path, *overrides: str) -> Mapping[str, float]:
    """Train a recipe into a folder, once; how many seconds it took, of CPU and on the clock.

    Raises:
        SystemExit: it failed, or was stopped; what it has done is there the next time.
    """
    kept = folder / "seconds.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    used, began = _cpu_seconds(), time.monotonic()
    words = ["train", recipe, f"directory={folder}", *overrides]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "dsv3_plugin.cli", *words],
        check=False,
        env=_environment(),
    )
    if done.returncode:
        sys.exit(done.returncode)
    seconds = {"cpu": _cpu_seconds() - used, "clock": time.monotonic() - began}
    replace_file(kept, json.dumps(seconds).encode())
    return seconds


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DSV3_API_KEY": _KEY}


@contextlib.contextmanager
def answering(checkpoint: str, weights: Path) -> Iterator[str]:
    """A server of a checkpoint, which takes weights below a folder; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    weights.mkdir(parents=True, exist_ok=True)
    words = ["serve", "--checkpoint", checkpoint, "--port", str(port), "--weights-root", weights]
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "dsv3_plugin.cli", *words], env=_environment()
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def by_rewards(way: str, seed: int, parent: str, run: Path) -> Mapping[str, float]:
    """Train the recipe in one of the ways; how many seconds it took."""
    words = (f"training.seed={seed}", *WAYS[way])
    if not way.startswith("openai") or (run / "seconds.json").is_file():
        return train(RECIPE, run, *words)
    with answering(parent, run.parent) as address:
        return train(RECIPE, run, *words, f"rollouts.url={address}")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def curve(folder: Path) -> dict[int, float]:
    """Held-out rewards of a run, by its steps; 0 is before the first."""
    records = RunFolder(folder).metrics.read()
    return {record["iteration"]: record[REWARD] for record in records if REWARD in record}


def accepted(folder: Path, rounds: int = 10) -> list[float]:
    """Of first tokens guessed ahead, how many came true in the first rounds and in the last."""
    records = RunFolder(folder).metrics.read()
    found = [record[_ACCEPTED] for record in records if _ACCEPTED in record]
    return [sum(part) / rounds for part in (found[:rounds], found[-rounds:]) if found]


def fine_tuned(folder: Path, parent: Path, seconds: float, per_step: float) -> dict[str, Any]:
    """The parent fine-tuned for so many seconds of CPU, and its held-out reward then."""
    steps = max(round(seconds / per_step), 1)
    further = folder / "fine_tuned"
    took = train(
        PARENT, further, f"from={parent}", "parent_recipe=null", f"training.steps={steps}",
        "curves.learning_rate=1e-3", "training.eval_interval=null",
    )  # fmt: skip
    asked = folder / "fine_tuned_asked"  # the line before the first step is of what it began with
    train(RECIPE, asked, f"from={further}", "parent_recipe=null", "training.steps=1")
    return {"run": f"fine-tuning, {steps} steps", "reward": curve(asked)[0], **took}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/rl_benchmark"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--as", dest="ways", nargs="+", choices=WAYS, default=["recipe"])
    options = parser.parse_args()
    folder = options.folder

    parent = load_recipe(RECIPE).from_
    made = train(PARENT, Path(parent))
    curves, rows = {}, []
    for way, seed in [(way, seed) for way in options.ways for seed in options.seeds]:
        name = f"seed {seed}" if way == "recipe" else f"{way}, seed {seed}"
        run = folder / (f"seed{seed}" if way == "recipe" else f"{way}_seed{seed}")
        took = by_rewards(way, seed, parent, run)
        curves[name] = curve(run)
        last = curves[name][max(curves[name])]
        mismatch = max(
            record.get("rl/mismatch_max", 0.0) for record in RunFolder(run).metrics.read()
        )
        rows.append(
            {
                "run": name,
                "before": curves[name][0],
                "reward": last,
                "mismatch": mismatch,
                "accepted": accepted(run),
                **took,
            }
        )
    per_step = made["cpu"] / load_recipe(PARENT).total_steps
    if "recipe" in options.ways:
        rows.append(fine_tuned(folder, Path(parent), rows[0]["cpu"], per_step))

    print("| run | held-out reward before | and after | CPU s | minutes |\n|---|---|---|---|---|")
    first = rows[0]["before"]
    for row in rows:
        rewards = f"{row.get('before', first):.3f} | {row['reward']:.3f}"
        spent = f"{row['cpu']:.0f} | {row['clock'] / 60:.1f}"
        print(f"| {row['run']} | {rewards} | {spent} |")
    for row in rows:
        if came := row.get("accepted"):
            came_true = " at first, ".join(f"{share:.4f}" for share in came)
            print(f"\nGuesses of {row['run']} that came true: {came_true} at last")
    print("\n| step | " + " | ".join(curves) + " |")
    print("|---" * (1 + len(curves)) + "|")
    for step in sorted(set().union(*curves.values())):
        rewards = (f"{of[step]:.3f}" if step in of else "" for of in curves.values())
        print(f"| {step} | " + " | ".join(rewards) + " |")
    print(json.dumps({"parent": made, "rows": rows, "curves": curves}))


if __name__ == "__main__":
    main()
