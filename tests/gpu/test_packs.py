"""Samples in packs on GPUs: what they are alone, and what a fine-tuning loses on a CPU.

The same steps as tests/pipeline/test_packs.py takes on CPU tensors.
"""

import json
from pathlib import Path

import pytest
import yaml

from tests.gpu.nccl_ranks import run_ranks
from tests.gpu.trained import ON_CPU, ON_GPU, ON_TRANSFORMER_ENGINE, STEPS, Losses, Start, dsv3
from tests.pipeline.packs_on_ranks import PACKS, each_alone, must_be_the_same, on_ranks


def test_a_sample_is_in_a_pack_what_it_is_alone(gpu, tmp_path):
    [expected] = run_ranks(1, each_alone, PACKS, scratch=tmp_path)
    [got] = run_ranks(1, on_ranks, PACKS, "1f1b", 1, {}, scratch=tmp_path)
    assert got["samples"].keys() == expected["samples"].keys()
    for key, seen in got["samples"].items():
        must_be_the_same(expected["samples"][key], seen)


@pytest.fixture(scope="module")
def on_cpu(start, tmp_path_factory) -> Losses:
    """The numbers of a fine-tuning on the CPU."""
    return tuned(start, tmp_path_factory.mktemp("tuned") / "run", *ON_CPU)


def test_a_fine_tuning_loses_what_it_does_on_a_cpu(start, on_cpu, new_folder):
    tuned(start, new_folder(), *ON_GPU).must_be(on_cpu, losses=1e-4, gradients=1e-3)


@pytest.mark.usefixtures("transformer_engine")
def test_transformer_engine_attends_within_samples(start, on_cpu, new_folder):
    """Its fused attention over `thd`, in BF16, which has eight bits of each number."""
    engine = (*ON_TRANSFORMER_ENGINE, "precision.dtype=bf16")
    tuned(start, new_folder(), *engine).must_be(on_cpu, losses=2e-2, gradients=1e-1)


def tuned(start: Start, folder: Path, *overrides: str) -> Losses:
    """Fine-tune on short conversations, several in each sequence, and look at the numbers."""
    recipe, chat = (start.recipe.with_name(name) for name in ("tuned.yaml", "chat.jsonl"))
    rows = [
        {"prompt": f"{a} + {b}?", "response": f"It is {a + b}."}
        for a in range(20)
        for b in range(20)
    ]
    chat.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"corpus": str(chat), "tokenizer": "parent", "packing": "conversations",
            "fim_rate": 0.0, "held_out": 0.0}  # fmt: skip
    settings = {
        "base": start.recipe.name,
        "stage": "sft",
        "from": str(start.release),
        "data": data,
        "training": {"steps": STEPS},
    }
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    dsv3("train", recipe, f"directory={folder}", *overrides)
    return Losses.read(folder)
