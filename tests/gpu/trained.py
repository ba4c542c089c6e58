"""Runs of a small model that begin with the same weights, on a CPU or on GPUs.

Weights drawn on a GPU are others than those drawn on a CPU, so a model is drawn once, trained one
step on the CPU, exported and imported: from that release every run begins at step 0, whatever its
device, backend, precision and division of the work.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.small_runs import Command, records, write_recipe

STEPS = 6


@dataclass(frozen=True)
class Start:
    """What runs have in common: the recipe, the data, and the weights they begin with."""

    recipe: Path
    data: Path
    release: Path

    def train(self, folder: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> "Losses":
        """Train all steps in `folder` and look at the numbers.

        Args:
            folder: of the run.
            overrides: of the recipe.
            launcher: what starts `dsv3 train` (torchrun), if it does not start its ranks itself.
        """
        shutil.copytree(self.release, folder / "checkpoints")
        self.go_on(folder, *overrides, launcher=launcher)
        return Losses.read(folder)

    def begin(self, folder: Path, steps: int, *overrides: str) -> None:
        """Train some of the steps, and stop."""
        shutil.copytree(self.release, folder / "checkpoints")
        self.go_on(folder, *overrides, f"megatron_args.exit-interval={steps}")

    def go_on(self, folder: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> None:
        """Train from wherever the run in `folder` stands."""
        common = (f"directory={folder}", f"data.path={self.data}")
        dsv3("train", self.recipe, *common, *overrides, launcher=launcher)


@dataclass(frozen=True)
class Losses:
    """What the steps of a run said, by number."""

    of: dict[str, list[float]]

    @classmethod
    def read(cls, folder: Path) -> "Losses":
        steps = [line for line in records(folder) if "loss" in line]
        assert [line["iteration"] for line in steps] == list(range(1, STEPS + 1))
        names = ("loss", "mtp_loss", "balance_loss", "grad_norm")
        return cls({name: [line[name] for line in steps] for name in names})

    def differ(self, other: "Losses") -> dict[str, float]:
        """The largest relative difference of each number."""
        return {
            name: max(abs(a - b) / abs(b) for a, b in zip(mine, other.of[name], strict=True))
            for name, mine in self.of.items()
        }

    def must_be(self, other: "Losses", losses: float, gradients: float) -> None:
        """Fail where a loss, or the norm of a gradient, differs by more than these shares."""
        for name, difference in self.differ(other).items():
            allowed = gradients if name == "grad_norm" else losses
            assert difference <= allowed, f"{name} differs by {difference:.1e}: {self} {other}"


def write_start(folder: Path, model: dict[str, Any]) -> Start:
    """Draw a model like the small one but for `model`, on the CPU."""
    recipe = write_recipe(folder)
    written = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    written["model"] |= model
    written["backend"] = "auto"
    written["training"] |= {"steps": STEPS, "micro_batch_size": 1}
    written["training"].pop("eval_interval")
    written["curves"] |= {"learning_rate": 1e-3, "batch_size": 16}
    written["parallel"] = {"processes": 1, "timeout_minutes": 5.0}
    written["checkpoint"] = {"interval": STEPS}
    recipe.write_text(yaml.safe_dump(written), encoding="utf-8")
    data, first = folder / "data", folder / "first"
    dsv3("train", recipe, "training.steps=1", f"directory={first}", f"data.path={data}", *ON_CPU)
    dsv3("export", first / "checkpoints", folder / "exported")
    dsv3("import", folder / "exported", folder / "release")
    return Start(recipe, data, folder / "release")


ON_CPU = ("host=cpu", "backend=local")
ON_GPU = ("host=gpu", "backend=local")
ON_TRANSFORMER_ENGINE = ("host=gpu", "backend=transformer_engine")


def dsv3(*arguments: str | Path, launcher: tuple[str, ...] = (), **variables: str) -> str:
    """Call `dsv3`; what it prints."""
    ended = Command(*arguments, prefix=launcher, **variables).end(seconds=1200)
    assert ended.code == 0, ended.output
    return ended.output
