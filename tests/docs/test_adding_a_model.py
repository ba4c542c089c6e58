"""docs/adding-a-model.md, done as it says."""

import json

import numpy as np
import pytest
import torch
import transformers

from tests.docs.pages import ROOT, Page
from tests.small_runs import Command, write_recipe

PAGE = Page(ROOT / "docs" / "adding-a-model.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page's file, and with less to read than the standard library."""
    folder = tmp_path_factory.mktemp("adding-a-model")
    for name, text in PAGE.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_recipe(folder)  # for its corpus alone
    return folder


def said(number: int) -> bool:
    return f"{number:,}" in PAGE.text


def test_the_counts_are_those_of_the_page(folder):
    ended = Command("plan", "my-model.yaml", "--json", cwd=folder).end()
    counts = json.loads(ended.output)
    assert said(counts["parameters_total"])
    assert said(counts["parameters_active"])
    assert said(counts["flops_per_token_forward_backward"])


def test_the_command_line_is_that_of_the_page(folder):
    ended = Command("args", "pretrain/tiny", "model=my-model.yaml", cwd=folder).end()
    assert ended.code == 0
    shown = [line for line in PAGE.text.splitlines() if line.startswith("--")]
    assert len(shown) == 5
    assert shown == ended.output.splitlines()[:5]


def test_it_trains_and_computes_and_transformers_computes_the_same(folder):
    train, logits, export = (
        command for command in PAGE.commands() if command[0] in ("train", "logits", "export")
    )
    less = ["data.corpus=corpus", "data.tokenizer.vocab_size=512", "training.eval_interval=null"]
    tokens = np.random.default_rng(0).integers(0, 512, (2, 40))
    np.save(folder / "tokens.npy", tokens)
    for command in ([*train, *less], logits, export):
        ended = Command.forked(*command, cwd=folder).end()
        assert ended.code == 0, ended.output
    ours = torch.from_numpy(np.load(folder / "logits.npy"))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder / "my-model-hf").float()
    with torch.no_grad():
        theirs = loaded(torch.from_numpy(tokens)).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)  # FP32 sums in another order
