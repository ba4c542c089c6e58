"""Answers are drawn and learned from on one GPU, by the weights that are trained."""

import json
from pathlib import Path

import pytest
import yaml

from tests.gpu.trained import ON_GPU, Start, dsv3
from tests.small_runs import records

LEARNED = {
    "stage": "rl",
    "training": {"steps": 4, "micro_batch_size": 2, "eval_interval": 2},
    "curves": {"learning_rate": 1e-3, "batch_size": 4, "router_bias_speed": 0, "mtp_weight": 0.1},
    "rollouts": {"prompts": 4, "n": 4, "max_prompt_tokens": 24, "max_tokens": 12, "held_out_n": 3},
    "grpo": {"mini_batches": 2, "kl_weight": 0.01, "reference_interval": 4},
    "rewards": {"match": {}, "language": {"script": "LATIN"}},
}


@pytest.fixture(scope="module")
def recipe(start: Start) -> Path:
    rows = [{"prompt": f"{a}+{b}?", "answer": a + b} for a in range(6) for b in range(6)]
    folder = start.recipe.parent
    for name, some in (("asked", rows[::2]), ("apart", rows[1::2])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)) + "\n")
    data = {
        "corpus": str(folder / "asked.jsonl"),
        "held_out_sets": {"apart": str(folder / "apart.jsonl")},
        "tokenizer": "parent",
        "packing": "prompts",
        "seq_length": 64,
        "fim_rate": 0.0,
        "held_out": 0.0,
    }
    path = folder / "learned.yaml"
    written = LEARNED | {"base": start.recipe.name, "from": str(start.release), "data": data}
    path.write_text(yaml.safe_dump(written), encoding="utf-8")
    return path


def test_engine_and_trainer_agree_on_a_gpu(recipe, new_folder):
    """Before the first step and after others; FP32, and one sum in another order."""
    folder = new_folder()
    dsv3("train", recipe, f"directory={folder}", *ON_GPU)
    lines = records(folder)
    assert max(line["iteration"] for line in lines) == 4
    rounds = [line for line in lines if "rl/mismatch_max" in line]
    assert len(rounds) == 2
    assert max(line["rl/mismatch_max"] for line in rounds) < 1e-5
    assert all("rl/held_out_reward" in line for line in lines if line["iteration"] in (0, 2, 4))
