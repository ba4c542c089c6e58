"""What this machine has, and what each missing thing costs."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv3_plugin.launch.node_check import node_name, problems, room
from dsv3_plugin.machine import Machine
from dsv3_plugin.numbers import number_of
from dsv3_plugin.planner.cluster import Cluster

_ANSWERS_WITHIN = 60
"""Seconds; Slurm's own commands give up on a controller after ten, some of them several times."""


@dataclass(frozen=True)
class Finding:
    """One line of the report: a thing, whether it is there, and what its absence means."""

    name: str
    found: str | None
    cost: str = ""


@dataclass(frozen=True)
class NodeReport:
    """What the check of a node found, which a job begins with.

    Attributes:
        name: the node.
        looked_at: in words.
        problems: phrases; none where it is well.
    """

    name: str
    looked_at: Sequence[str]
    problems: Sequence[str]


def examine_node(cluster: Cluster | None, folder: Path) -> NodeReport:
    """Look at this node as a job does before it trains there.

    Args:
        cluster: what it is of; None: as many GPUs as it has are looked at.
        folder: of the file system on which runs are kept.
    """
    gpus, adapters = Machine.here().gpus, os.environ.get("NCCL_IB_HCA")
    scratch: dict[Path, int] = {}
    if cluster is not None:
        launch = cluster.launch
        gpus = cluster.gpus_per_node if cluster.host == "gpu" else 0
        adapters = launch.environment.get("NCCL_IB_HCA", adapters)
        if launch.scratch is not None:
            scratch[Path(launch.scratch)] = round(launch.scratch_gb * 1e9)
    found = [*problems(folder, gpus, scratch, adapters), *room({folder: 0})]
    looked_at = [number_of(gpus, "GPU") if gpus else "no GPU"]
    if adapters:
        looked_at.append(f"adapters {adapters}")
    return NodeReport(node_name(), [*looked_at, "the clock", *map(str, [folder, *scratch])], found)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _module(name: str, distribution: str | None = None) -> str | None:
    """The version of an importable module; modules are looked for, not imported."""
    if importlib.util.find_spec(name) is None:
        return None
    return _version(distribution or name) or "present"


def _gpus() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{len(names)} × {names[0]}"


def _slurm() -> Finding:
    """Slurm, if it answers: its commands may be installed where no controller can be reached."""
    sinfo, cost = shutil.which("sinfo"), "runs start on this machine only, or under torchrun"
    if sinfo is None:
        return Finding("Slurm", None, cost)
    is_told, version = _first_line([sinfo, "--version"])  # fails, too, without a configuration
    answers, words = _first_line([sinfo, "--noheader", "--format=%D"])
    if answers:
        return Finding("Slurm", f"{version if is_told and version else 'present'}, answers")
    what = version if is_told and version else "it"
    return Finding("Slurm", None, f"{what} is installed, and does not answer ({words}): {cost}")


def _first_line(command: list[str]) -> tuple[bool, str]:
    """Whether a command succeeds in time, and the first line of what it says."""
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_ANSWERS_WITHIN,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"nothing for {_ANSWERS_WITHIN} s"
    said = (ended.stdout if ended.returncode == 0 else ended.stderr).strip()
    return ended.returncode == 0, said.partition("\n")[0]


def examine() -> list[Finding]:
    """Look at this machine. Imports torch, and nothing else that is heavy."""
    return [
        Finding("Python", platform.python_version()),
        Finding("torch", _version("torch"), "nothing trains"),
        Finding("megatron-core", _version("megatron-core"), "nothing trains"),
        Finding("transformers", _version("transformers"), "no tokenizers, no exports to check"),
        Finding("CPU cores", str(os.cpu_count())),
        Finding("GPUs", _gpus(), "host: cpu only: recipes can be checked, not run at full size"),
        Finding(
            "Transformer Engine",
            _module("transformer_engine"),
            "backend: local only; no FP8, no fused kernels (pip install 'dsv3_plugin[gpu]')",
        ),
        Finding(
            "DeepEP", _module("deep_ep"), "dispatch: deepep is refused; alltoall and two_hop work"
        ),
        Finding(
            "HybridEP",
            _module("hybrid_ep_cpp", "deep_ep"),
            "dispatch: hybridep is refused; alltoall and two_hop work",
        ),
        Finding(
            "Apex",
            _module("apex"),
            "nothing: torch's product adds the head's weight gradient to its sum",
        ),
        Finding("ModelOpt", _version("nvidia-modelopt"), "no quantised export"),
        _slurm(),
    ]
