"""A run small enough to be started many times: its recipe, and `dsv3 train` as a user calls it.

300K parameters with every feature of DeepSeek-V3, twelve steps, all curves in motion, on the
source of two packages of the standard library.
"""

import contextlib
import email
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from dsv3_plugin.files.metrics_file import MetricsFile
from dsv3_plugin.files.run_folder import RunFolder
from tests.forked_programs import ForkedProcess

STEPS = 12

MODEL = {
    "num_layers": 2,
    "hidden_size": 64,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "ffn_hidden_size": 128,
    "layernorm_epsilon": 1e-6,
    "init_method_std": 0.02,
    "num_attention_heads": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_head_dim": 16,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 16,
    "rope_type": "rope",
    "rotary_base": 10000.0,
    "moe_layer_freq": [0, 1],
    "num_moe_experts": 8,
    "moe_ffn_hidden_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "moe_router_topk": 2,
    "moe_router_num_groups": 4,
    "moe_router_group_topk": 2,
    "moe_router_score_function": "sigmoid",
    "moe_router_topk_scaling_factor": 2.5,
    "moe_router_enable_expert_bias": True,
    "moe_router_load_balancing_type": "seq_aux_loss",
    "moe_aux_loss_coeff": 1e-4,
    "mtp_num_layers": 1,
}

CURVES = {
    "learning_rate": [
        {"linear": 4e-3, "from": 0, "for": "3 steps"},
        {"constant": 4e-3, "until": "8 steps"},
        {"cosine": 4e-4, "for": "3 steps"},
        {"constant": 4e-4},
    ],
    "batch_size": [{"linear": 16, "from": 8, "until": "3K"}, {"constant": 16}],
    "router_bias_speed": [{"constant": 1e-3, "until": "9 steps"}, {"constant": 0}],
    "mtp_weight": [{"constant": 0.3, "until": "6 steps"}, {"constant": 0.1}],
}

LONGER = {
    "base": "small.yaml",
    "stage": "extend",
    "model": {
        "rope_type": "yarn",
        "rotary_scaling_factor": 5,
        "original_max_position_embeddings": 64,
        "max_position_embeddings": 320,
    },
    "data": {"tokenizer": "parent", "seq_length": 256},
    "training": {"steps": 1, "micro_batch_size": 1, "eval_interval": 1, "eval_steps": 2},
    "curves": {"learning_rate": 1e-4, "batch_size": 2, "router_bias_speed": 0, "mtp_weight": 0.1},
    "checkpoint": {"interval": 1},
}
"""A recipe beside it that stretches its positions, by YaRN; `from` is missing."""


def write_recipe(folder: Path) -> Path:
    """Write the small recipe and its corpus into `folder`; the recipe's path."""
    corpus = folder / "corpus"
    for package in (json, email):
        source = Path(package.__file__).parent
        shutil.copytree(
            source,
            corpus / source.name,
            ignore=lambda _, names: [n for n in names if n[-3:] != ".py"],
        )
    recipe = {
        "model": {"name": "small", **MODEL},
        "backend": "local",
        "host": "cpu",
        "precision": {"dtype": "fp32"},
        "data": {
            "corpus": str(corpus),
            "tokenizer": {"kind": "bpe", "vocab_size": 512},
            "seq_length": 64,
            "fim_rate": 0.1,
            "held_out": 0.05,
        },
        "training": {
            "steps": STEPS,
            "micro_batch_size": 2,
            "eval_interval": 6,
            "eval_steps": 2,
            "log_interval": 2,
        },
        "curves": CURVES,
        "parallel": {"processes": 2, "expert": 2, "timeout_minutes": 1.0},
        "checkpoint": {"interval": 4, "keep": 3},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    output: str


class Command:
    """A `dsv3` command as a user starts it."""

    def __init__(
        self,
        *arguments: str | Path,
        prefix: Iterable[str] = (),
        cwd: Path | None = None,
        **variables: str,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *prefix, "dsv3_plugin.cli", *map(str, arguments)],
            env={**_environment(), **variables},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @classmethod
    def forked(cls, *arguments: str | Path, cwd: Path | None = None, **variables: str) -> "Command":
        """The same, forked from where all is imported (`tests.forked_programs`): the command and
        its ranks do what they would, and cost a third."""
        command = cls.__new__(cls)
        command._process = ForkedProcess(
            [*map(str, arguments)], {**_environment(), **variables}, cwd
        )
        return command

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ranks(self) -> list[int]:
        """Process ids of its ranks, in order; as many as are there by now."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return sorted(int(child) for child in children)

    def when(self, happened: Callable[[], object], seconds: float = 120) -> "Command":
        """Wait until something has happened; it fails when the command ends before."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self._process.poll() is None, f"ended before: {self._process.stdout.read()}"
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.005)
        return self

    def send(self, number: signal.Signals, to: int | None = None) -> "Command":
        """Send a signal to the command, or to another process."""
        os.kill(self.pid if to is None else to, number)
        return self

    def send_everyone(self, number: signal.Signals) -> "Command":
        """Send a signal to the command and all that it started, as a cluster's scheduler does."""
        command = psutil.Process(self.pid)
        for process in [command, *command.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return self

    def end(self, seconds: float = 900) -> Ended:
        """Wait for its end."""
        try:
            output, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        return Ended(self._process.returncode, output)


@dataclass(frozen=True)
class Trained:
    """A run that went through undisturbed."""

    recipe: Path
    folder: Path
    ended: Ended

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def data(self) -> Path:
        return self.folder / "data"


def _environment() -> dict[str, str]:
    """This process's, without what a launcher or a terminal would have put there."""
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "COLUMNS", "FORCE_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # One thread, so that a run computes the same under every launcher.
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; none before there is one."""
    return RunFolder(folder).metrics.read()


def evaluated_samples(
    data: Path, length: int, which: Iterable[int], part: str = "held_out"
) -> list[np.ndarray]:
    """What a run's trainer evaluated on, by the indices that upstream left with its data.

    Args:
        data: the folder of its dataset.
        length: tokens of its sequences; each sample has one more.
        which: numbers of samples in the order of reading, from its first evaluation on.
        part: what is evaluated on: below the folder, without `.bin`.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    documents, shuffled = (
        np.load(next(data.glob(f"{part}/cache/*/*-valid-{name}_index.npy")), allow_pickle=False)
        for name in ("document", "shuffle")
    )
    held_out = IndexedDataset(str(data / part))
    stream = np.concatenate([held_out[number] for number in documents]).astype(np.int64)
    starts = (length * int(shuffled[number]) for number in which)
    return [stream[start : start + length + 1] for start in starts]


def steps_taken(folder: Path) -> int:
    """The last step in a run's metrics."""
    return max((record["iteration"] for record in records(folder)), default=0)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl without those that tell the time."""
    return numbers_of(folder / "metrics.jsonl")


def numbers_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of metrics without what tells the time; none before there is one."""
    clock = ("time", "_seconds", "tokens_per_second")
    return [
        {key: value for key, value in record.items() if not key.endswith(clock)}
        for record in MetricsFile(path).read()
    ]
