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
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.report.loss_picture import draw_losses
from dsv3_plugin.report.losses import losses_of

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
    draw_losses([losses_of(RunFolder(RUN), RUN.name)], picture)
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
