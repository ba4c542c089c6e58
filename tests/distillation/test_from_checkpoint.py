"""`dsv3 distill` from a checkpoint of ours."""

import json
from pathlib import Path
from typing import Any

from tests.small_runs import Trained


def test_answers_are_the_engines_and_come_to_an_end(
    dsv3: Any, trained: Trained, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "samples.jsonl"
    rows = [{"prompt": f"def {name}("} for name in "abc"] + [{"prompt": "long " * 200}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # So warm that any token follows any other: one in 512 ends an answer.
    command = (
        "distill", prompts, "--from", trained.folder / "checkpoints", "--n", 24, "--json",
        "--reward", "tests.distillation.rewards.anything", "--temperature", 50, "--top-p", 1,
    )  # fmt: skip
    said = dsv3(*command, "--out", out)
    assert said.code == 0, said.err
    counts, samples = json.loads(said.out), [json.loads(line) for line in out.open()]
    assert counts["rejected"].pop("longer than the model's 128 positions") == 24
    assert counts["kept"] > 0
    assert {row["prompt"] for row in samples} <= {row["prompt"] for row in rows[:3]}
    assert not any("<｜end" in row["response"] for row in samples)
    assert counts["kept"] + sum(counts["rejected"].values()) == 72
    dsv3(*command, "--out", tmp_path / "again.jsonl", "--at-once", 4)
    assert sorted((tmp_path / "again.jsonl").open()) == sorted(out.open())
