"""A model answers prompts and is trained on what its answers are worth, from whatever it began
with."""

import json
import signal
from pathlib import Path

import pytest
import torch
import yaml

from dsv3_plugin.checkpoint.formats.dist_reader import DistCheckpoint
from tests.small_runs import Command, Trained, numbers, records, steps_taken

STEPS = 6

LEARNED = {
    "base": "small.yaml",
    "stage": "rl",
    "data": {
        "tokenizer": "parent",
        "packing": "prompts",
        "seq_length": 64,
        "fim_rate": 0.0,
        "held_out": 0.0,
    },
    "training": {"steps": STEPS, "micro_batch_size": 2, "eval_interval": 3},
    "curves": {"learning_rate": 1e-3, "batch_size": 4, "router_bias_speed": 0, "mtp_weight": 0.1},
    "rollouts": {
        "prompts": 4, "n": 4, "max_prompt_tokens": 24, "max_tokens": 12, "temperature": 0.8,
        "held_out_n": 3,
    },
    # Two steps of a round, so that a checkpoint lies within one.
    "grpo": {
        "mini_batches": 2,
        "entropy_weight": 0.01,
        "kl_weight": 0.01,
        "reference_interval": 4,
    },
    "rewards": {"match": {}, "tests.stages.letters.early": {}},
    "parallel": {"processes": 2, "expert": 1},
    "recompute": ["norms", "core_attn", "moe"],
    "checkpoint": {"interval": 1},
}  # fmt: skip


def written(folder: Path, source: Path, **changes: object) -> Path:
    """The recipe in a folder where small.yaml is, with its prompts, to begin with weights."""
    rows = [{"prompt": f"{a}+{b}?", "answer": a + b} for a in range(6) for b in range(6)]
    for name, some in (("asked", rows[::2]), ("apart", rows[1::2])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)) + "\n")
    data = LEARNED["data"] | {
        "corpus": str(folder / "asked.jsonl"),
        "held_out_sets": {"apart": str(folder / "apart.jsonl")},
    }
    path = folder / "learned.yaml"
    path.write_text(yaml.safe_dump(LEARNED | {"from": str(source), "data": data} | changes))
    return path


@pytest.fixture(scope="module")
def learning(recipe: Path, trained: Trained) -> Path:
    return written(recipe.parent, trained.folder)


@pytest.fixture(scope="module")
def learned(learning: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("learned") / "run"
    ended = Command.forked("train", learning, f"directory={folder}").end()
    assert ended.code == 0, ended.output
    return Trained(learning, folder, ended)


def test_engine_and_trainer_agree_at_every_round(learned: Trained) -> None:
    """Also where the weights have been updated in between, at another temperature than 1, and where
    activations are computed again."""
    rounds = [line for line in records(learned.folder) if "rl/mismatch_max" in line]
    assert [line["iteration"] for line in rounds] == [1, 3, 5]
    assert max(line["rl/mismatch_max"] for line in rounds) <= 1e-5
    assert all(line["rl/mismatch_mean"] < 1e-6 for line in rounds)
    assert not any(line["rl/mismatch_beyond_clip"] for line in rounds)


def test_a_run_tells_its_numbers(learned: Trained) -> None:
    lines = {line["iteration"]: line for line in records(learned.folder)}
    assert lines.keys() == {*range(STEPS + 1)}
    assert all("rl/held_out_reward" in lines[step] for step in (0, 3, 6))
    assert lines[0].keys() >= {
        "rl/held_out_pass_at_1", "rl/held_out_pass_at_3", "rl/held_out_majority"
    }  # fmt: skip
    asked = lines[1]
    assert asked["rl/reward"] == pytest.approx(
        asked["rl/reward_match"] + asked["rl/reward_tests.stages.letters.early"]
    )
    assert asked["rl/answer_tokens_max"] <= LEARNED["rollouts"]["max_tokens"]
    for line in (lines[step] for step in range(1, STEPS + 1)):
        assert "rl/entropy" in line
        # Of whole groups of four, divided by their deviation with 4 - 1 in its denominator.
        assert line["rl/advantage_mean"] == pytest.approx(0, abs=1e-6)
        assert line["rl/advantage_std"] == pytest.approx((3 / 4) ** 0.5, abs=1e-3)
        assert line["rl/advantage_min"] < 0 < line["rl/advantage_max"]
    # The reference is the model of step 1, and then that of step 5, to which nothing differs.
    divergences = [lines[step]["rl/kl"] for step in range(1, STEPS + 1)]
    assert max(divergences[0], divergences[4]) < 1e-9
    assert min(divergences[1], divergences[2], divergences[3], divergences[5]) > 1e-7
    assert "reward 0." in learned.ended.output
    assert "Done: step 6" in learned.ended.output


def test_routers_stay_as_they_are(learned: Trained, trained: Trained) -> None:
    """Weights and biases, from the parent's to the last step's; experts learn."""
    before, after = (
        DistCheckpoint(run.checkpoints / f"iter_{step:07d}")
        for run, step in ((trained, 12), (learned, STEPS))
    )

    def weights(stored: DistCheckpoint, part: str) -> dict[str, torch.Tensor]:
        return {
            key: stored.read(key, (0,) * len(tensor.shape), tensor.shape)
            for key, tensor in stored.contents.tensors.items()
            if part in key and not key.startswith("optimizer.")
        }

    own = weights(before, ".router.")
    assert {key.rpartition(".")[2] for key in own} >= {"weight", "expert_bias"}
    for key, tensor in weights(after, ".router.").items():
        assert torch.equal(tensor, own[key]), key
    experts = weights(before, ".experts.")
    assert experts
    assert all(not torch.equal(x, experts[key]) for key, x in weights(after, ".experts.").items())


def test_answers_are_kept_to_be_read(learned: Trained) -> None:
    files = sorted((learned.folder / "samples").iterdir())
    assert [path.name for path in files] == [f"step_{n:07d}.jsonl" for n in (1, 3, 5)]
    lines = {line["iteration"]: line for line in records(learned.folder)}
    for path, step in zip(files, (1, 3, 5), strict=True):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == LEARNED["rollouts"]["prompts"] * LEARNED["rollouts"]["n"]
        mean = sum(row["reward"] for row in rows) / len(rows)
        assert mean == pytest.approx(lines[step]["rl/reward"])
        assert all(row["prompt"].count("+") and row["expected"] for row in rows)


def test_a_killed_run_goes_on_within_a_round(
    learning: Path, learned: Trained, tmp_path: Path
) -> None:
    """From a checkpoint in the middle of one, and with the answers of the next, which were there
    when it was killed."""
    run = tmp_path / "run"
    words = ("train", learning, f"directory={run}", "checkpoint.interval=3")
    answers = run / "rollouts" / "step_0000005_0.pt"
    started = Command.forked(*words).when(answers.exists)
    assert started.send(signal.SIGKILL).end().code == -signal.SIGKILL
    made = answers.stat().st_mtime_ns
    ended = Command.forked(*words).end()
    assert ended.code == 0, ended.output
    assert "Going on from step 3" in ended.output
    said = " ".join(ended.output.split())
    assert "From step 5 on answers that were made before the run ended are taken up" in said
    assert answers.stat().st_mtime_ns == made
    assert numbers(run) == numbers(learned.folder)


OLDER = (
    "rollouts.async=1", "rollouts.curriculum.high=0.99", "rollouts.dynamic_sampling=2",
    "training.eval_interval=2", "grpo.routing_replay=true", "grpo.mini_batches=1", "grpo.epochs=2",
    "grpo.importance=sequence", "grpo.aggregation=sequence_mean",
)  # fmt: skip
"""Rounds of answers of older weights, of prompts by what became of them, whose experts are those of
the weights that made them; trained on twice, by ratios of whole answers."""


def trained_alike_after_a_kill(folder: Path, *words: object) -> tuple[Path, str]:
    """Train twice, once killed in between and gone on with, to the same numbers; the folder of the
    run that was not killed, and what it said."""
    whole, killed = folder / "whole", folder / "killed"
    alone = Command.forked("train", *words, f"directory={whole}")
    started = Command.forked("train", *words, f"directory={killed}").when(
        lambda: steps_taken(killed) >= 3
    )
    assert started.send(signal.SIGKILL).end().code == -signal.SIGKILL
    ended = Command.forked("train", *words, f"directory={killed}").end()
    assert ended.code == 0, ended.output
    assert "Going on from step " in ended.output
    first = alone.end()
    assert first.code == 0, first.output
    assert numbers(killed) == numbers(whole)
    return whole, first.output


@pytest.mark.long
def test_answers_of_older_weights_are_the_same_after_a_kill(learning: Path, tmp_path: Path) -> None:
    whole, said = trained_alike_after_a_kill(tmp_path, learning, *OLDER)

    rounds = {line["iteration"]: line for line in records(whole) if "rl/age" in line}
    assert {step: line["rl/age"] for step, line in rounds.items()} == {1: 0, 3: 2, 5: 2}
    assert rounds[1]["rl/mismatch_max"] < 1e-5 < rounds[3]["rl/mismatch_max"]
    assert rounds[5]["rl/curriculum_measured"] > 0
    shares = [line["rl/correction_truncated"] for line in records(whole) if "rl/kl" in line]
    assert len(shares) == STEPS
    assert all(0 <= share < 0.5 for share in shares)
    assert "differ from the trainer's" not in said
    for step, version in ((1, 0), (3, 0), (5, 2)):
        text = (whole / "samples" / f"step_{step:07d}.jsonl").read_text()
        assert {json.loads(line)["weights"] for line in text.splitlines()} == {version}


@pytest.mark.long
def test_answers_that_are_gone_on_with_are_the_same_after_a_kill(
    learning: Path, tmp_path: Path
) -> None:
    words = ("rollouts.partial=5", "grpo.mini_batches=1", "mtp=freeze")
    whole, said = trained_alike_after_a_kill(tmp_path, learning, *words)

    rounds = [line for line in records(whole) if "rl/age_max" in line]
    assert [line["iteration"] for line in rounds] == [*range(1, STEPS + 1)]
    assert rounds[0]["rl/unfinished"] > 0
    # Of twelve tokens at most, five a round: the third is an answer's last.
    assert max(line["rl/age_max"] for line in rounds) == 2
    assert max(line["rl/answer_tokens_max"] for line in rounds) == 12
    assert "differ from the trainer's" not in said
    for line in rounds:
        text = (whole / "samples" / f"step_{line['iteration']:07d}.jsonl").read_text()
        for row in map(json.loads, text.splitlines()):
            versions = row["versions"]
            assert sum(tokens for _, tokens in versions) == row["tokens"]
            assert all(tokens <= 5 for _, tokens in versions)
            assert versions[-1][0] <= row["weights"] == line["iteration"] - 1
            assert len({version for version, _ in versions}) == -(-row["tokens"] // 5)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.packing=stream"], "stage rl reads prompts"),
        (["rollouts.max_tokens=60"], "are more than a sequence: raise data.seq_length 64 to 84"),
        (["rollouts.prompts=5"], "5 does not divide by 2 data-parallel ranks: take 4 or 6."),
        (["rollouts.top_p=0.9"], "rollouts.top_p 0.9 would never draw tokens that the loss"),
        (
            ["rollouts.curriculum.low=0.9"],
            "rollouts.curriculum has its bounds the wrong way round: low 0.9 and high 0.8: "
            "give low the smaller one.",
        ),
        (["rollouts.async=1", "grpo.on_mismatch=stop"], "set grpo.on_mismatch to warn"),
        (["parallel.context=2"], "set parallel.context to 1, not to 2"),
        (["parallel.pipeline=2", "pipeline.schedule=search"], "search is of one number"),
        (
            ["rewards.magic.weight=1"],
            "rewards.magic: there is no such reward (nearest: 'match'): take one of",
        ),
        (["rewards.length.weight=1"], "rewards.length needs a margin"),
        (["data.held_out=0.1"], "name prompts to evaluate on in data.held_out_sets"),
        (["data.held_out_sets.apart={asked}"], "is data.corpus as well"),
        (["data.corpus=nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["rollouts.max_prompt_tokens=2"], "no prompt has 2 tokens or less"),
    ],
)
def test_what_is_wrong_is_said(
    learning: Path, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    asked = learning.with_name("asked.jsonl")
    words = [override.format(asked=asked) for override in overrides]
    ended = Command.forked("train", learning, f"directory={tmp_path}/run", *words).end()
    assert ended.code == 2, ended.output
    assert sentence in " ".join(ended.output.split())
