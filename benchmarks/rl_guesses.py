"""Whether guesses of multi-token prediction stay good while a model is trained by rewards.

    python benchmarks/rl_guesses.py [--folder runs/rl_guesses] [--steps 120]

Pretrains the small model of the tests for 100 steps on the standard library's source, and has it
learn to write letters of the first half of the alphabet, twelve tokens an answer: once with
multi-token prediction that learns the answers too (the default), once with a frozen one. Both have
the same rewards, since guesses change no answer. Prints the share of guesses that came true, and
the rewards, in ten rounds at a time, and a JSON line. What is there already in the folder is not
done again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dsv3_plugin.files.run_folder import RunFolder  # noqa: E402
from tests.small_runs import write_recipe  # noqa: E402
from tests.stages.test_rl import written  # noqa: E402

LEARNED = (
    "rollouts.drafts=1", "rollouts.prompts=8", "rollouts.n=8", "curves.batch_size=8",
    "recompute=[]", "grpo.mini_batches=1", "grpo.kl_weight=0", "grpo.reference_interval=null",
    "grpo.entropy_weight=0",
)  # fmt: skip
"""What is otherwise than in the tests: more answers, of which a round is one step, and no more."""
_ROUNDS = 10


def dsv3(*words: object) -> None:
    """A command, at the repository's root, where the reward is found.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-W", "ignore", "-m", "dsv3_plugin.cli", *map(str, words)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def of_rounds(run: Path) -> list[tuple[int, float, float]]:
    """The last round of each ten, the share of guesses that came true in them, and the reward."""
    records = [one for one in RunFolder(run).metrics.read() if "rl/acceptance_1" in one]
    parts = [records[begin : begin + _ROUNDS] for begin in range(0, len(records), _ROUNDS)]
    names = ("rl/acceptance_1", "rl/reward")
    return [
        (part[-1]["iteration"], *(sum(one[name] for one in part) / len(part) for name in names))
        for part in parts
    ]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/rl_guesses"))
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)

    small, parent = folder / "small.yaml", folder / "parent"
    if not small.exists():
        write_recipe(folder)
    dsv3("train", small, f"directory={parent}", "training.steps=100")
    recipe = written(folder, parent)
    found = {}
    for mtp in ("train", "freeze"):
        dsv3(
            "train", recipe, f"directory={folder / mtp}", f"mtp={mtp}", *LEARNED,
            f"training.steps={options.steps}", f"training.eval_interval={options.steps}",
            f"checkpoint.interval={options.steps}",
        )  # fmt: skip
        found[mtp] = of_rounds(folder / mtp)

    print("| rounds to | came true | and frozen | reward |\n|---|---|---|---|")
    for (step, learned, reward), (_, frozen, _) in zip(*found.values(), strict=True):
        print(f"| {step} | {learned:.3f} | {frozen:.3f} | {reward:.3f} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
