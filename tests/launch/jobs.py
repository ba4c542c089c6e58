"""Jobs for tests of launching: of every shipped recipe, and a cluster without GPUs to run on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dsv3_plugin.launch.job_values import JobValues, values_of
from dsv3_plugin.planner.cluster import Cluster, load_cluster, shipped_clusters
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.recipe import shipped
from dsv3_plugin.recipe.load import load_recipe, shipped_folder

RECIPES = [name for name in shipped.names_in(shipped_folder()) if not name.startswith("models/")]
"""Those that ship."""

LAUNCH = ("launch", "pretrain/tiny", "--cluster", "two.yaml")
"""Words of a launch where the cluster is written."""


def write_cluster(
    folder: Path, launch: dict[str, Any], nodes: int = 2, devices: int = 4, **keys: Any
) -> Path:
    """Write `two.yaml`: nodes of as many cores each, with keys of `launch` and others; its path."""
    cpu = shipped.shipped_folder("launch/clusters") / "cpu.yaml"
    said = yaml.safe_load(cpu.read_text(encoding="utf-8"))
    said |= {
        "gpus": nodes * devices, "gpus_per_node": devices, "nvlink_domain": devices,
        "launch": launch, **keys,
    }  # fmt: skip
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump(said), encoding="utf-8")
    return path


def write_slurm(
    folder: Path, body: str = "echo 12", queue: str = "", cancel: str = "", has: str = ""
) -> None:
    """Write what stands for Slurm: it takes jobs as number 12 and has them waiting; `has`: its
    partitions."""
    commands = {
        "sbatch": body,
        "squeue": f"echo '{queue}'",
        "scancel": cancel,
        "sinfo": f"echo {has}",
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)


def job(recipe: str, cluster: Cluster, runs: int = 1, after: str | None = None) -> JobValues:
    loaded = load_recipe(recipe, [], cluster.machine)
    return values_of(
        loaded,
        make_plan(loaded, cluster, cluster.machine),
        runs=[Path("runs/a folder") / str(number) for number in range(runs)],
        nodes=None,
        after=after,
        command="dsv3 launch",
        folder=Path("/home/me/my work"),
    )


def shipped_jobs() -> Iterator[tuple[str, JobValues]]:
    """Every shipped recipe on every shipped cluster that has its devices, with memory enough, and
    what it is called."""
    for recipe in RECIPES:
        for cluster in shipped_clusters():
            there = load_cluster(cluster)
            loaded = load_recipe(recipe, [], there.machine)
            if loaded.parallel.processes > there.gpus:
                continue
            if make_plan(loaded, there, there.machine).limit.fits:
                yield f"{recipe.replace('/', '-')}-{cluster}", job(recipe, there)
