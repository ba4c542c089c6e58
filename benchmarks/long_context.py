"""Context that is used: a tiny model trained at 256 tokens, extended to 1024, then to 4096.

    python benchmarks/long_context.py [--folder runs/long_context]

Trains a small DeepSeek-style model (MLA, dense layers) on the Python standard library and on
generated documents whose facts are asked for later in them, and extends it by YaRN in two phases;
a twin is extended without YaRN. Then `dsv3 eval` asks for facts that no document had (see
`dsv3_plugin/evaluation/facts.py`), and computes losses by position on files that nobody trained
on. Everything goes through the `dsv3` command, in a process of its own, on one core.

Each stage is a run of its own in the folder and each evaluation a JSON file: what is there is not
done again, and a stage that was stopped goes on. Prints a table and a JSON line, and draws
`long_context.svg`.
"""

import argparse
import itertools
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import yaml
from tokenizers import decoders, models, pre_tokenizers, trainers

from dsv3_plugin.data.corpus import find_sources
from dsv3_plugin.data.documents import read_documents
from dsv3_plugin.data.tokenizer import EOS
from dsv3_plugin.evaluation.facts import KINDS, training_documents, values
from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.folders import whole_folder
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.numbers import time_text, tokens_text

SHORT, MIDDLE, LONG = 256, 1024, 4096
LENGTHS = (SHORT, MIDDLE, LONG)
HELD_OUT = 40
"""Files of the standard library that nobody trains on, about an eightieth."""
LINES_OF_A_PASSAGE = 6
DOCUMENTS = 400
"""Of each kind, that the tokenizer is trained on."""

MODEL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 128,
    "vocab_size": 2048,
    "ffn_hidden_size": 384,
    "layernorm_epsilon": 1e-6,
    "init_method_std": 0.04,
    "num_attention_heads": 4,
    "kv_lora_rank": 64,
    "qk_head_dim": 32,
    "qk_pos_emb_head_dim": 32,
    "v_head_dim": 32,
    "rotary_base": 10000.0,
}
FACTS = {SHORT: (4, 1), MIDDLE: (10, 9), LONG: (24, 44)}
"""Facts in a generated document of a stage, each asked for once, and passages of real text: about
as many tokens as its sequences have, in the first two thirds."""
TOKENS_OF_FACTS = 4e6
YARN = {
    "rope_type": "yarn",
    "rotary_scaling_factor": 20.0,
    "original_max_position_embeddings": SHORT,
    "max_position_embeddings": 20 * SHORT,
}
"""As recipes/extend: one YaRN for both phases, a quarter further than is asked of it."""
PLAIN = {"rope_type": "rope", "max_position_embeddings": 20 * SHORT}


@dataclass(frozen=True)
class Stage:
    """One run.

    Attributes:
        name: of it, and of its folder.
        length: tokens of its sequences.
        steps, batch: how many, and of how many sequences.
        rate: peak learning rate; it falls to a tenth.
        mixture: folders of texts, each with its share of the tokens.
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
            },
            "training": {
                "steps": self.steps,
                "micro_batch_size": max(1, min(self.batch, 4096 // self.length)),
                "log_interval": 50,
            },
            "curves": {
                "learning_rate": [
                    {"linear": self.rate, "from": 0, "for": f"{max(self.steps // 30, 1)} steps"},
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
    """Texts, generated documents and a tokenizer, as far as they are not there.

    Of each length there are about as many generated tokens as real ones.
    """
    random_passages = texts(folder)
    for length, (facts, passages_each) in FACTS.items():
        documents = training_documents(
            random_passages, facts=facts, passages_each=passages_each, seed=length
        )
        number = max(50, round(share * TOKENS_OF_FACTS / length))
        path = folder / "texts" / f"facts-{length}" / "facts.jsonl"
        if not path.exists():
            write_documents(path, [*itertools.islice(documents, number)])
    number = max(50, round(share * TOKENS_OF_FACTS / SHORT))
    write_documents(
        folder / "texts" / "lists" / "lists.jsonl", [*itertools.islice(lists(), number)]
    )
    if not (folder / "tokenizer").exists():
        write_tokenizer(folder)


def lists(seed: int = 0) -> Iterator[str]:
    """Short lists of words read out again and again: nothing teaches sooner to look back.

    A model of two layers takes long to find out that it can copy what followed a word before: from
    facts, and lists read out twice, it had not after 7M tokens.
    """
    draw = random.Random(seed)
    words = sorted({word for kind in KINDS for value in values(kind, "training") for word in value})
    while True:
        length = draw.randint(8, 24)
        yield " " + " ".join(draw.sample(words, length) * (SHORT // length))


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE in which a digit and the space before it are one token."""
    backend = tokenizers.Tokenizer(models.BPE())
    split = tokenizers.Regex(r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MODEL["vocab_size"],
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    names = (f"facts-{SHORT}/facts.jsonl", "lists/lists.jsonl", "train/python.jsonl")
    # Of each so few that the words of facts are frequent, and so a token each.
    lines = (
        line
        for name in names
        for line in (folder / "texts" / name).read_text(encoding="utf-8").splitlines()[:DOCUMENTS]
    )
    backend.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)
    with whole_folder(folder / "tokenizer") as place:
        backend.save(str(place / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
        (place / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def texts(folder: Path) -> list[str]:
    """Real text, written once: what is trained on and what is not; the passages of the former."""
    documents = [document.text for document in read_documents(find_sources("stdlib"))]
    random.Random(0).shuffle(documents)
    parts = {"held_out": documents[:HELD_OUT], "train": documents[HELD_OUT:]}
    for name, of in parts.items():
        write_documents(folder / "texts" / name / "python.jsonl", of)
    return [passage for text in parts["train"] for passage in passages(text)]


def passages(text: str) -> list[str]:
    """Some lines each, of those that are neither empty nor very long."""
    lines = text.split("\n")
    cut = ("\n".join(some) for some in itertools.batched(lines, LINES_OF_A_PASSAGE))
    return [passage for passage in cut if passage.strip() and len(passage) < 600]


def write_documents(path: Path, documents: list[str]) -> None:
    """One document per line, if the file is not there yet."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as beside:
        beside.write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8"
        )


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
    """Train a stage, or what is left of it; seconds of a core that it took in all so far."""
    run = RunFolder(folder / stage.name)
    record = folder / f"{stage.name}.seconds.json"
    took = json.loads(record.read_text()) if record.exists() else 0.0
    if run.steps_saved() < stage.steps:
        recipe = folder / f"{stage.name}.yaml"
        recipe.write_text(yaml.safe_dump(stage.recipe(folder), sort_keys=False))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            dsv3("train", recipe)
        finally:
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            record.write_text(json.dumps(took))
    return took


def evaluated(name: str, folder: Path, *words: object) -> dict[str, Any]:
    """What `dsv3 eval` says in JSON, from its file if it has been asked before."""
    path = folder / "evaluations" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        said = dsv3("eval", *words, "--json", capture=True)
        with whole_file(path) as beside:
            beside.write_text(said, encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Row:
    """A model as it is evaluated.

    Attributes:
        name: in the table and the picture.
        stage: whose weights.
        changes: of its positions.
    """

    name: str
    stage: str
    changes: tuple[str, ...] = ()


ROWS = (
    Row("trained at 256", "short", (f"model.max_position_embeddings={20 * SHORT}",)),
    Row("extended with YaRN", "yarn-4096"),
    Row("the same, YaRN off", "yarn-4096", ("model.rope_type=rope",)),
    Row("extended without YaRN", "plain-4096"),
)


@dataclass(frozen=True)
class Measured:
    """What was measured of a row: the JSON of `dsv3 eval needle` and `dsv3 eval loss`."""

    row: Row
    needles: dict[str, Any]
    losses: dict[str, Any]

    def right(self, length: int, *, needle: bool = True) -> tuple[int, int]:
        """How many questions were answered rightly at a length, and how many there were."""
        right = [
            one["right"]
            for one in self.needles["asked"]
            if one["length"] == length and (one["depth"] is not None) == needle
        ]
        return sum(right), len(right)

    def by_depth(self, length: int) -> list[tuple[float, float]]:
        """Depths and the shares of right answers there, of all kinds together."""
        shares: dict[float, list[float]] = {}
        for one in self.needles["right"]:
            if one["length"] == length and one["depth"] is not None:
                shares.setdefault(one["depth"], []).append(one["share"])
        return [(depth, sum(of) / len(of)) for depth, of in sorted(shares.items())]

    @property
    def by_position(self) -> list[tuple[int, float]]:
        """The last context of each bucket, and the loss there."""
        return [(one["last"], one["loss"]) for one in self.losses["sets"][0]["by_position"]]


def measure(row: Row, folder: Path, samples: int) -> Measured:
    """Evaluate a model, as far as it has not been."""
    name = f"{row.stage}{'-changed' if row.changes and row.stage != 'short' else ''}"
    on = ("--checkpoint", folder / row.stage, *row.changes)
    needles = evaluated(
        f"needle-{name}",
        folder,
        *("needle", *on, "--lengths", ",".join(map(str, LENGTHS)), "--samples", samples),
        *("--haystack", folder / "texts" / "held_out"),
    )
    losses = evaluated(
        f"loss-{name}",
        folder,
        *("loss", *on, "--data", folder / "held_out", "--seq-length", LONG, "--sequences", 32),
    )
    return Measured(row, needles, losses)


def table(measured: list[Measured]) -> list[str]:
    """What was found, a row for each model."""
    lengths = [f"{length:,}" for length in LENGTHS]
    lines = [
        f"| | facts found at {' | '.join(lengths)} | without the fact | loss at "
        f"{' | '.join(lengths)} |",
        f"|---|{'---|' * (2 * len(LENGTHS) + 1)}",
    ]
    for one in measured:
        found = [f"{right} of {asked}" for right, asked in map(one.right, LENGTHS)]
        alone = [one.right(length, needle=False) for length in LENGTHS]
        control = f"{sum(right for right, _ in alone)} of {sum(asked for _, asked in alone)}"
        by_position = dict(one.by_position)
        losses = [f"{by_position[length]:.3f}" for length in LENGTHS]
        lines.append(f"| {' | '.join([one.row.name, *found, control, *losses])} |")
    return lines


def draw(measured: list[Measured], path: Path) -> None:
    """Loss by context on the left, facts found at the full length by depth on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for one in measured:
        left.plot(*zip(*one.by_position, strict=True), "o-", markersize=3, label=one.row.name)
        right.plot(*zip(*one.by_depth(LONG), strict=True), "o-", markersize=3)
    left.set_xscale("log", base=2)
    left.set_xlabel("tokens of context, at most")
    left.set_ylabel("loss on files held out (nats per token)")
    left.axvline(SHORT, color="0.7", linewidth=0.8)
    left.legend(frameon=False, fontsize=8)
    right.set_xlabel(f"depth of the fact in {LONG:,} tokens")
    right.set_ylabel("answers that are right")
    right.set_ylim(-0.03, 1.03)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.savefig(path)


def stages(share: float) -> list[Stage]:
    """All runs in order; `share` of their steps, to try it out."""

    def steps(number: int) -> int:
        return max(2, round(share * number))

    def mixture(length: int, lists: float = 0.0) -> dict[str, float]:
        of = {"train": 0.4, f"facts-{length}": 0.6 - lists, "lists": lists}
        return {name: weight for name, weight in of.items() if weight}

    unstretched = {"rope_type": "rope", "max_position_embeddings": SHORT}
    short = [
        Stage("lists", SHORT, steps(2000), 16, 1e-3, {"lists": 1.0}, None, unstretched),
        Stage("short", SHORT, steps(8000), 16, 1e-3, mixture(SHORT, 0.1), "lists", unstretched),
    ]
    extended = [
        Stage(f"{name}-{length}", length, steps(300), batch, 5e-4, mixture(length), parent, how)
        for name, how in (("yarn", YARN), ("plain", PLAIN))
        for length, batch, parent in ((MIDDLE, 4, "short"), (LONG, 1, f"{name}-{MIDDLE}"))
    ]
    return [*short, *extended]


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
    if not (folder / "held_out").exists():
        dsv3(
            *("data", "build", "--corpus", folder / "texts" / "held_out"),
            *("--tokenizer", folder / "tokenizer", "--held-out", 0, "--out", folder / "held_out"),
        )
    measured = [measure(row, folder, arguments.samples) for row in ROWS]
    print(*table(measured), sep="\n")
    print()
    for stage in trained:
        print(
            f"{stage.name}: {tokens_text(stage.tokens)} tokens in sequences of {stage.length:,}, "
            f"{time_text(seconds[stage.name])} of a core"
        )
    draw(measured, folder / "long_context.svg")
    result = {
        "model": MODEL,
        "stages": [
            {"name": stage.name, "tokens": stage.tokens, "core_seconds": seconds[stage.name]}
            for stage in trained
        ],
        "measured": [
            {
                "name": one.row.name,
                "found": {length: one.right(length) for length in LENGTHS},
                "without_the_fact": {length: one.right(length, needle=False) for length in LENGTHS},
                "loss_by_context": dict(one.by_position),
            }
            for one in measured
        ],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
