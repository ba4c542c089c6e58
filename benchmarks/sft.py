"""Fine-tuning in small: the demonstration's model learns to answer questions about functions.

    python benchmarks/sft.py [--folder runs/sft_benchmark]

Pretrains `recipes/pretrain/tiny.yaml` on one core, makes instruction data from the functions of the
Python standard library (see `sft_rows.py`), fine-tunes as `recipes/sft/tiny.yaml` does, and asks
both models about functions that were held out: the greedy answer has to be the right one, to the
character, and to end where that ends. Everything but the asking goes through the `dsv3` command.

What is there already in the folder is not done again. Prints a table and a JSON line.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sft_rows import TASKS, Function, Task, asked, commonest_share, functions, write_rows

from dsv3_plugin.files.atomic import whole_file
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe.load import load_recipe

ONE_CORE = ("parallel.processes=1", "parallel.expert=1")
RATE = "[{linear: 2e-3, from: 0, for: 30 steps}, {cosine: 2e-4, until: 2 epochs}]"
"""Of a model that has seen so little, more is to be learned than of one that knows its language:
half the peak of its pretraining, where the recipe keeps to the report's ratio, a ninth."""
LONGEST_ANSWER = 40
"""Tokens."""


@dataclass(frozen=True)
class Rows:
    """About which functions a task asks, in training and afterwards."""

    task: Task
    train: Sequence[Function]
    held_out: Sequence[Function]


def rows_of_tasks(train: int, held_out: int) -> dict[str, Rows]:
    """So many of each task at most, drawn from all by a seed."""
    of = functions()
    chosen = {}
    for name, about in asked(of).items():
        draw = random.Random(name)
        mixed = draw.sample(about, len(about))
        parts = [[one for one in mixed if one.is_held_out == held] for held in (False, True)]
        chosen[name] = Rows(TASKS[name], parts[0][:train], parts[1][:held_out])
    return chosen


def dsv3(*words: object) -> None:
    """Run the `dsv3` command on one core.

    Raises:
        SystemExit: it failed, or was stopped; what it has done is there the next time.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "dsv3_plugin.cli", *map(str, words)],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        sys.exit(done.returncode)


def train(*words: str) -> None:
    """`dsv3 train`, unless that run has ended."""
    dsv3("train", *words, *ONE_CORE)


def answers(run: Path, rows: dict[str, Rows], into: Path) -> dict[str, list[str]]:
    """What a run's model says to the held-out prompts of each task; asked once."""
    if not into.exists():
        prompts = {
            name: [one.task.row(of)["prompt"] for of in one.held_out] for name, one in rows.items()
        }
        subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--answer", str(run), "--into", str(into)],
            input=json.dumps(prompts), text=True, check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return json.loads(into.read_text(encoding="utf-8"))


def answer(run: Path, into: Path) -> None:
    """The greedy answers of a run's newest model to prompts from standard input; no world is left
    to train in, so this is a process of its own."""
    from dsv3_plugin.checkpoint.loadable import tokenizer_beside
    from dsv3_plugin.data.chat.conversation import Conversation
    from dsv3_plugin.data.chat.template import open_template
    from dsv3_plugin.distributed.world import single_process
    from dsv3_plugin.inference.checkpoint_tokenizer import tokenizer_of_checkpoint

    with single_process():
        from dsv3_plugin.evaluation.checkpoint import Evaluated, Place

        place = Place.named(run)
        model, tokenizer = Evaluated.load(place), tokenizer_of_checkpoint(place.folder)
        template = open_template(tokenizer_beside(place.folder), None, {}, "all")

        def said(prompt: str) -> str:
            turn = Conversation([{"role": "user", "content": prompt}])
            # As `dsv3 generate --chat` encodes it: special tokens where the template spells them.
            text = template.prompt(turn, "the prompt")
            tokens = tokenizer.backend.encode(text, add_special_tokens=False).ids
            return tokenizer.decode(model.proceed(tokens, LONGEST_ANSWER, tokenizer.eos_id))

        found = {name: [*map(said, prompts)] for name, prompts in json.load(sys.stdin).items()}
    with whole_file(into) as beside:
        beside.write_text(json.dumps(found), encoding="utf-8")


def right(rows: Rows, said: Sequence[str]) -> float:
    """The share of answers that are the right ones, to the character."""
    wanted = map(rows.task.answer, rows.held_out)
    return sum(a.strip() == b for a, b in zip(said, wanted, strict=True)) / len(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/sft_benchmark"))
    parser.add_argument("--train", type=int, default=3000, help="rows of each task at most")
    parser.add_argument("--held-out", type=int, default=80, help="questions of each task at most")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer is not None:
        answer(arguments.answer, arguments.into)
        return
    folder = arguments.folder.resolve()
    parent, tuned = folder / "tiny", folder / "tuned"
    begin = time.monotonic()
    rows = rows_of_tasks(arguments.train, arguments.held_out)
    for part in ("train", "held_out"):
        each = [one.task.row(of) for one in rows.values() for of in getattr(one, part)]
        write_rows(folder / f"{part}.jsonl", each)
    train("pretrain/tiny", f"directory={parent}")
    settings = (
        f"directory={tuned}",
        f"from={parent}",
        f"data.corpus={folder / 'train.jsonl'}",
        "data.held_out=0",
        f"data.held_out_sets={{functions: {folder / 'held_out.jsonl'}}}",
        "data.on_bad_row=skip",
        "training.eval_interval=100",
        "training.eval_steps=16",
        f"curves.learning_rate={RATE}",
    )
    train("sft/tiny", *settings)
    said = {
        when: answers(run, rows, folder / f"answers_{when}.json")
        for when, run in (("before", parent), ("after", tuned))
    }
    recipe = load_recipe("sft/tiny", [*settings, *ONE_CORE])
    records = RunFolder(tuned).metrics.read()
    steps = [record for record in records if "loss" in record]
    held_out = [record for record in records if "validation_loss" in record]
    counted = recipe.epochs_counted
    result = {
        "tasks": {
            name: {
                "trained": len(one.train),
                "asked": len(one.held_out),
                "commonest": commonest_share(one.task, one.train, one.held_out),
                **{when: right(one, said[when][name]) for when in said},
            }
            for name, one in rows.items()
        },
        "held_out_loss": [held_out[at]["validation_loss"] for at in (0, -1)],
        "draft_acceptance": [held_out[at]["validation_draft_acceptance"] for at in (0, -1)],
        "packing": counted.tokens / (sum(counted.sequences) * recipe.data.seq_length),
        "learned_share": counted.learned / counted.tokens,
        "conversations": counted.conversations,
        "steps": steps[-1]["iteration"],
        "tokens": steps[-1]["tokens"],
        "minutes": {
            run.name: sum(
                record.get("step_seconds", 0) for record in RunFolder(run).metrics.read()
            ) / 60
            for run in (parent, tuned)
        },
    }  # fmt: skip
    print(*table(result), sep="\n")
    print(f"\n{(time.monotonic() - begin) / 60:.1f} minutes")
    print(json.dumps(result))


def table(result: dict) -> list[str]:
    """The result in Markdown."""
    lines = [
        "| | rows | asked | before | after | commonest answer |",
        "|---|---|---|---|---|---|",
    ]
    for name, of in result["tasks"].items():
        shares = " | ".join(f"{of[key]:.0%}" for key in ("before", "after", "commonest"))
        lines.append(f"| {name} | {of['trained']:,} | {of['asked']} | {shares} |")
    before, after = result["held_out_loss"]
    lines.append(f"| held-out loss | | | {before:.3f} | {after:.3f} | |")
    before, after = result["draft_acceptance"]
    lines.append(f"| drafts accepted | | | {before:.1f} % | {after:.1f} % | |")
    minutes = result["minutes"]
    return [
        *lines,
        "",
        f"{result['conversations']:,} conversations in 2 epochs, {result['packing']:.1%} of the "
        f"places of their sequences filled, {result['learned_share']:.1%} of the tokens learned; "
        f"{result['steps']:,} steps, {result['tokens']:,} tokens, {minutes['tuned']:.1f} minutes "
        f"after {minutes['tiny']:.1f} of pretraining",
    ]


if __name__ == "__main__":
    main()
