"""Context that is used: a tiny model trained at 256 tokens, extended to 1024, then to 4096.

    python benchmarks/long_context.py [--folder runs/long_context]

Trains a small DeepSeek-style model (MLA, dense layers) on the Python standard library and on
generated documents whose facts are asked for later in them, and extends it by YaRN in two phases;
a twin is extended without YaRN. Then `dsv3 eval` asks for facts that no document had (see
`dsv3_plugin/evaluation/facts.py`), and computes losses by position on files that nobody trained
on. Everything goes through the `dsv3` command, in a process of its own, on one core.

Each stage is a run of its own in the folder and each evaluation a JSON file, named after what it is
of, by digest of weights, texts and settings: what is there is not done again, and a stage that was
stopped goes on. Prints a table and a JSON line, and draws
`long_context.svg`.
"""

import argparse
import hashlib
import itertools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from long_context_report import Measured, draw, table
from long_context_texts import (
    Asking,
    documents_with_facts,
    lists,
    passages,
    real_texts,
    write_documents,
    write_tokenizer,
)

from dsv3_plugin.checkpoint.tracker import newest_complete
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.numbers import time_text, tokens_text
from dsv3_plugin.planner.counts import parameter_counts
from dsv3_plugin.recipe.model import ModelConfig

FIRST, SHORT, MIDDLE, LONG = 64, 256, 1024, 4096
LENGTHS = (SHORT, MIDDLE, LONG)
CONTEXTS = (FIRST, *LENGTHS)
"""Lengths of the sequences that held-out text is cut into."""
AMONG = 4
"""Facts in a haystack of the harder questions."""

MODEL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 128,
    "vocab_size": 1024,
    "ffn_hidden_size": 256,
    "layernorm_epsilon": 1e-6,
    "init_method_std": 0.08,
    "num_attention_heads": 4,
    "kv_lora_rank": 64,
    "qk_head_dim": 32,
    "qk_pos_emb_head_dim": 32,
    "v_head_dim": 32,
    "rotary_base": 10000.0,
}
YARN = {
    "rope_type": "yarn",
    "rotary_scaling_factor": 20.0,
    "original_max_position_embeddings": SHORT,
    "max_position_embeddings": 20 * SHORT,
}
"""As recipes/extend: one YaRN for both phases, a quarter further than is asked of it."""
PLAIN = {"rope_type": "rope", "max_position_embeddings": 20 * SHORT}
UNSTRETCHED = {"rope_type": "rope", "max_position_embeddings": SHORT}

IN_TEXT = {
    SHORT: {Asking(1, 5): 2, Asking(2, 3): 3, Asking(3, 2): 2, Asking(4, 1): 1},
    MIDDLE: {Asking(1, 4): 1, Asking(2, 2): 1, Asking(3, 2): 1, Asking(4, 2): 1, Asking(2, 6): 1},
    LONG: {Asking(1, 4): 1, Asking(2, 2): 1, Asking(3, 2): 1, Asking(4, 2): 1, Asking(2, 6): 1},
}
"""What documents of facts between real text are made of. The longer they are, the further away is
what is asked for: about a third of the document, on average, where each fact is asked for twice."""
ALONE = {
    FIRST: {Asking(1, 4): 1, Asking(2, 1): 2},
    SHORT: {Asking(1, 8): 1, Asking(2, 8): 2, Asking(3, 5): 2, Asking(4, 4): 2, Asking(6, 2): 1},
}
"""And of facts alone."""
GENERATED = {FIRST: 20_000, SHORT: 24_000, MIDDLE: 2_000, LONG: 500}
"""Documents of each kind and length: more than a stage reads."""


@dataclass(frozen=True)
class Stage:
    """One run.

    Attributes:
        name: of it, and of its folder.
        length: tokens of its sequences.
        steps, batch: how many, and of how many sequences.
        rate: peak learning rate; it falls to a tenth.
        mixture: folders of texts, each with its share of the sequences.
        parent: the stage whose weights it begins with; None: it pretrains.
        positions: fields of the model that say how they are made.
    """

    name: str
    length: int
    steps: int
    batch: int
    rate: float
    mixture: dict[str, float]
    parent: str | None
    positions: dict[str, Any]

    @property
    def tokens(self) -> int:
        return self.steps * self.batch * self.length

    def recipe(self, folder: Path) -> dict[str, Any]:
        """The recipe of the run, complete."""
        tokenizer = "parent" if self.parent else str(folder / "tokenizer")
        return {
            "stage": "extend" if self.parent else "pretrain",
            **({"from": str(folder / self.parent)} if self.parent else {}),
            "directory": str(folder / self.name),
            "model": {"name": "long-context", **MODEL, **self.positions},
            "backend": "local",
            "host": "cpu",
            "precision": {"dtype": "fp32"},
            "data": {
                "corpus": [
                    {"path": str(folder / "texts" / of), "weight": weight}
                    for of, weight in self.mixture.items()
                ],
                "tokenizer": tokenizer,
                "seq_length": self.length,
                "held_out": 0.0,
                "packing": "whole",
            },
            "training": {
                "steps": self.steps,
                "micro_batch_size": max(1, min(self.batch, 4096 // self.length)),
                "log_interval": 50,
            },
            "curves": {
                "learning_rate": [
                    {"linear": self.rate, "from": 0, "for": f"{min(50, self.steps // 2)} steps"},
                    {"cosine": self.rate / 10, "until": f"{self.steps} steps"},
                    {"constant": self.rate / 10},
                ],
                "batch_size": self.batch,
                "router_bias_speed": 0,
                "mtp_weight": 0,
            },
            "parallel": {"processes": 1},
            "checkpoint": {"interval": max(self.steps // 20, 1), "keep": 1},
        }


def write_data(folder: Path, share: float) -> None:
    """Texts, generated documents and a tokenizer, as far as they are not there."""
    train, held_out = real_texts()
    between = [passage for text in train for passage in passages(text)]
    texts = {
        "train": iter(train),
        "held_out": iter(held_out),
        **{
            f"facts-{length}": documents_with_facts(between, length, askings, seed=length)
            for length, askings in IN_TEXT.items()
        },
        **{
            f"facts-alone-{length}": documents_with_facts([], length, askings, seed=length)
            for length, askings in ALONE.items()
        },
        f"lists-{FIRST}": lists(FIRST - 2, 14, seed=FIRST),
        f"lists-{SHORT}": lists(SHORT - 16, 40, seed=SHORT),
    }
    for name, documents in texts.items():
        length = name.rpartition("-")[2]
        most = max(50, round(share * GENERATED[int(length)])) if length.isdigit() else None
        path = folder / "texts" / name / f"{name}.jsonl"
        write_documents(path, itertools.islice(documents, most))
    write_tokenizer(folder / "tokenizer", MODEL["vocab_size"], train)


def dsv3(*words: object, capture: bool = False) -> str:
    """Run the `dsv3` command on one core; what it prints passes through, or is returned.

    Raises:
        SystemExit: it failed, or was stopped; what it has done is there the next time.
    """
    done = subprocess.run(
        [sys.executable, "-m", "dsv3_plugin.cli", *map(str, words)],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def train(stage: Stage, folder: Path) -> float:
    """Train a stage, or what is left of it; seconds of a core that it took in all so far.

    Raises:
        SystemExit: the folder holds one of that name by another recipe, or it failed.
    """
    run = RunFolder(folder / stage.name)
    record = folder / f"{stage.name}.seconds.json"
    took = json.loads(record.read_text()) if record.exists() else 0.0
    recipe, wanted = folder / f"{stage.name}.yaml", stage.recipe(folder)
    if recipe.exists() and yaml.safe_load(recipe.read_text()) != wanted:
        sys.exit(f"{run.root} is of another recipe: choose another --folder.")
    recipe.write_text(yaml.safe_dump(wanted, sort_keys=False))
    if run.steps_saved() < stage.steps:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            dsv3("train", recipe)
        finally:
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            record.write_text(json.dumps(took))
    return took


@cache
def digest(path: Path) -> str:
    """Of a file, or of all files in a folder."""
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
            found.update(file.read_bytes())
    return found.hexdigest()


def evaluated(
    what: str, folder: Path, stage: str, texts: Path, *settings: object
) -> dict[str, Any]:
    """What `dsv3 eval` says in JSON, from its file if the same has been asked before.

    Args:
        what: `needle` or `loss`.
        folder: of the runs.
        stage: whose newest weights.
        texts: what they are evaluated on.
        settings: all else that decides the answer.
    """
    saved = newest_complete(RunFolder(folder / stage).checkpoints)
    assert saved is not None, "a stage is trained before it is evaluated"
    asked = " ".join([what, digest(saved.path), digest(texts), *map(str, settings)])
    key = hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()
    path = folder / "evaluations" / f"{what}-{stage}-{key}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        on = "--haystack" if what == "needle" else "--data"
        said = dsv3(
            *("eval", what, "--checkpoint", folder / stage, on, texts, *settings, "--json"),
            capture=True,
        )
        with whole_file(path) as beside:
            beside.write_text(said, encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


ROWS = (
    ("trained at 256", "short", (f"model.max_position_embeddings={20 * SHORT}",)),
    ("extended to 1,024 by YaRN", "yarn-1024", ()),
    ("then to 4,096", "yarn-4096", ()),
    ("the same weights, YaRN off", "yarn-4096", ("model.rope_type=rope",)),
    ("extended to 4,096 without YaRN", "plain-4096", ()),
)
"""Models as they are evaluated: the name of each, whose weights, and changes of its positions."""


def measure(folder: Path, samples: int) -> Iterator[Measured]:
    """Evaluate all models, as far as they have not been.

    Args:
        folder: of the runs.
        samples: questions of each kind and depth at a length.
    """
    if not (folder / "held_out").exists():
        dsv3(
            *("data", "build", "--corpus", folder / "texts" / "held_out"),
            *("--tokenizer", folder / "tokenizer", "--held-out", 0, "--out", folder / "held_out"),
        )
    texts = folder / "texts" / "held_out"
    lengths = ("--lengths", ",".join(map(str, LENGTHS)), "--samples", samples)
    every = ("--sequences", 1_000_000)
    parameters = parameter_counts(ModelConfig(name="long-context", **MODEL, **UNSTRETCHED)).total
    for name, stage, changes in ROWS:
        asked = ("needle", folder, stage, texts, *changes, *lengths)
        yield Measured(
            name,
            parameters,
            needles=evaluated(*asked),
            among=evaluated(*asked, "--needles", AMONG),
            losses={
                length: evaluated(
                    *("loss", folder, stage, folder / "held_out", *changes, *every),
                    *("--seq-length", length),
                )
                for length in CONTEXTS
            },
        )


def stages(share: float) -> list[Stage]:
    """All runs in order; `share` of their steps, to try it out."""

    def steps(number: int) -> int:
        return max(2, round(share * number))

    first = {f"lists-{FIRST}": 0.6, f"facts-alone-{FIRST}": 0.4}
    short = {
        f"facts-{SHORT}": 0.45,
        f"facts-alone-{SHORT}": 0.25,
        f"lists-{SHORT}": 0.1,
        "train": 0.2,
    }
    trained = [
        Stage("first", FIRST, steps(1500), 32, 2e-3, first, None, UNSTRETCHED),
        Stage("short", SHORT, steps(6000), 8, 2e-3, short, "first", UNSTRETCHED),
    ]
    for name, how in (("yarn", YARN), ("plain", PLAIN)):
        parent = "short"
        for length, number, batch in ((MIDDLE, 600, 2), (LONG, 300, 1)):
            mixture = {f"facts-{length}": 0.65, "train": 0.35}
            stage = Stage(
                f"{name}-{length}", length, steps(number), batch, 1e-3, mixture, parent, how
            )
            trained.append(stage)
            parent = stage.name
    return trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/long_context"))
    parser.add_argument("--samples", type=int, default=10, help="questions of a kind and depth")
    parser.add_argument("--share", type=float, default=1.0, help="of the steps, to try it out")
    arguments = parser.parse_args()
    folder, share = arguments.folder.resolve(), arguments.share
    write_data(folder, share)
    trained = stages(share)
    seconds = {stage.name: train(stage, folder) for stage in trained}
    measured = [*measure(folder, arguments.samples)]
    print(*table(measured, LENGTHS, AMONG, MODEL["vocab_size"]), sep="\n")
    print()
    for stage in trained:
        print(
            f"{stage.name}: {tokens_text(stage.tokens)} tokens in sequences of {stage.length:,}, "
            f"{time_text(seconds[stage.name])} of a core"
        )
    draw(measured, folder / "long_context.svg", SHORT, LONG)
    result = {
        "model": MODEL,
        "stages": [
            {"name": stage.name, "tokens": stage.tokens, "core_seconds": seconds[stage.name]}
            for stage in trained
        ],
        "measured": [one.mapping(LENGTHS) for one in measured],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
