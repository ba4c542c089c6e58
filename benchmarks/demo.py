"""The whole way in small: train, export, compare with transformers, generate.

    make demo

Trains `recipes/pretrain/tiny.yaml` (the source of the Python standard library, two processes with
the experts divided between them), exports the result, loads it in transformers, and prints the
held-out loss first → last, the largest difference of logits, and a sample. A picture of the losses
and the curves is written beside the run. Everything goes through the `dsv3` command.
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from dsv3_plugin.files import metrics_file
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch.ending import is_done
from dsv3_plugin.numbers import tokens_text
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.report.curves import sample

RUN = Path("runs/demo")
LEAST_GAIN = 2.5
"""Nats per token on held-out text."""
LARGEST_DIFFERENCE = 1e-4
PROMPT = "def read(self, path):\n    "


def dsv3(*arguments: str, capture: bool = False) -> str:
    """Run the `dsv3` command; its output passes through, or is returned."""
    # Ctrl-C is the command's to answer: it saves and stops.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    done = subprocess.run(
        [sys.executable, "-m", "dsv3_plugin.cli", *arguments],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    signal.signal(signal.SIGINT, before)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout or ""


def logit_difference(checkpoint: Path, exported: Path, scratch: Path) -> float:
    """Largest |difference| between our logits and transformers' for the same tokens."""
    tokenizer = AutoTokenizer.from_pretrained(exported)
    source = Path(metrics_file.__file__).read_text(encoding="utf-8")
    ids = numpy.array([tokenizer(source)["input_ids"][:200]], dtype=numpy.int64)
    tokens, out = scratch / "tokens.npy", scratch / "logits.npy"
    numpy.save(tokens, ids)
    dsv3("logits", "--checkpoint", str(checkpoint), "--tokens", str(tokens), "--out", str(out))
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids)).logits.numpy()
    return float(abs(numpy.load(out) - theirs).max())


def draw(recipe: Recipe, records: list[dict], path: Path) -> None:
    """Losses above; below the four curves, as lines, and what each step really used, as dots."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    tokens = FuncFormatter(lambda value, _: tokens_text(value))
    steps = [record for record in records if "loss" in record]
    positions = [0, *(step["tokens"] for step in steps)]
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=(2.3, 1))

    axis = figure.add_subplot(grid[0, :])
    for key, label, color in (
        ("mtp_loss", "two tokens ahead (MTP)", "tab:orange"),
        ("loss", "next token", "tab:blue"),
    ):
        values = numpy.array([step[key] for step in steps])
        axis.plot(positions[1:], values, color=color, alpha=0.25, linewidth=0.8)
        axis.plot(positions[1:], smoothed(values), color=color, linewidth=1.6, label=label)
    held_out = [(r["tokens"], r["validation_loss"]) for r in records if "validation_loss" in r]
    axis.plot(*zip(*held_out, strict=True), "ko-", linewidth=1.2, markersize=5, label="held out")
    for position, loss in (held_out[0], held_out[-1]):
        offset = {"textcoords": "offset points", "xytext": (0, 9), "ha": "center"}
        axis.annotate(f"{loss:.2f}", (position, loss), **offset)
    axis.set_ylabel("loss (nats per token)")
    axis.set_xlabel("consumed tokens")
    total = tokens_text(recipe.total_tokens)
    axis.set_title(f"{recipe.model.name}: {total} tokens of {recipe.data.corpus}", loc="left")
    axis.margins(x=0.03, y=0.08)
    axis.xaxis.set_major_formatter(tokens)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)

    for column, (name, title) in enumerate(
        (
            ("learning_rate", "learning rate"),
            ("batch_size", "batch (sequences)"),
            ("router_bias_speed", "router-bias speed γ"),
            ("mtp_weight", "MTP weight λ"),
        )
    ):
        small = figure.add_subplot(grid[1, column])
        small.plot(*sample(getattr(recipe.curves, name), recipe.total_tokens), color="0.7")
        used = [step[name] for step in steps]
        small.plot(positions[:-1], used, ".", color="tab:blue", markersize=2.5)
        small.set_title(title, loc="left", fontsize=9)
        small.set_ylim(bottom=0)
        small.tick_params(labelsize=7)
        small.locator_params(axis="x", nbins=4)
        small.xaxis.set_major_formatter(tokens)
        small.grid(alpha=0.25)
    figure.savefig(path, dpi=120)


def smoothed(values: numpy.ndarray, width: int = 15) -> numpy.ndarray:
    """The mean of each value and its neighbours."""
    around = numpy.ones(width)
    return numpy.convolve(values, around, "same") / numpy.convolve(
        numpy.ones_like(values), around, "same"
    )


def main() -> None:
    """Run the demonstration; the whole of it again each time, but for the corpus."""
    console = Console(highlight=False)
    # Its report of the MTP layer's names, which its main model does not read, is no news here.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    begin = time.monotonic()
    for stale in ("checkpoints", "export", "metrics.jsonl", "tensorboard"):
        target = RUN / stale
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    overrides = [f"directory={RUN}"]
    dsv3("train", "pretrain/tiny", *overrides)
    recipe = load_recipe("pretrain/tiny", overrides)
    if not is_done(recipe):
        sys.exit(130)
    exported = RUN / "export"
    dsv3("export", str(recipe.checkpoint_folder), str(exported))
    difference = logit_difference(recipe.checkpoint_folder, exported, RUN)
    text = dsv3(
        "generate",
        *("--checkpoint", str(recipe.checkpoint_folder)),
        *("--prompt", PROMPT, "--max-new-tokens", "60", "--temperature", "0.7", "--seed", "1"),
        capture=True,
    )
    records = RunFolder(RUN).metrics.read()
    picture = RUN / "demo.png"
    draw(recipe, records, picture)
    held_out = [record["validation_loss"] for record in records if "validation_loss" in record]
    gained = held_out[0] - held_out[-1]
    console.print(
        f"""
held-out loss        {held_out[0]:.3f} → {held_out[-1]:.3f} nats per token: {gained:.2f} less
logits               differ from transformers' by {difference:.1e} at most
picture              {picture}
Hugging Face model   {exported}
time                 {(time.monotonic() - begin) / 60:.1f} minutes
a sample
""",
        soft_wrap=True,
    )
    console.print(text, markup=False, soft_wrap=True)
    if gained < LEAST_GAIN or difference > LARGEST_DIFFERENCE:
        console.print(
            f"This is not right: the loss should fall by {LEAST_GAIN} and the logits differ by "
            f"less than {LARGEST_DIFFERENCE}."
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
