"""The curves as they really act: what the optimizer, the routers and the MTP loss were given."""

import functools
import importlib
import math
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from tests.gloo_ranks import run_ranks
from tests.small_runs import STEPS, records
from tests.training import trainer_ranks

SEQUENCE = 64


def train_and_watch(rank: int, recipe: Path, overrides: list[str]) -> dict[str, list[float]]:
    """Train, and note at each step what is used, where it is used."""
    from megatron.core.models.gpt import gpt_model
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    finalize = importlib.import_module("megatron.core.distributed.finalize_model_grads")
    seen = {"learning_rate": [], "router_bias_speed": [], "mtp_weight": [], "sequences": []}
    optimizers, micro_batches = [], []
    update, mtp = finalize.get_updated_expert_bias, gpt_model.process_mtp_loss

    def at_optimizer_step(optimizer, args, kwargs):
        optimizers.append(optimizer)
        if optimizer is not optimizers[0]:  # experts have one of their own
            assert optimizer.param_groups[0]["lr"] == seen["learning_rate"][-1]
            return
        seen["learning_rate"].append(optimizer.param_groups[0]["lr"])
        seen["sequences"].append(sum(micro_batches))
        micro_batches.clear()

    def at_bias_update(tokens, bias, speed, **groups):
        seen["router_bias_speed"].append(speed)
        return update(tokens, bias, speed, **groups)

    @functools.wraps(mtp)
    def at_mtp_loss(*args, **kwargs):
        if torch.is_grad_enabled():
            if not micro_batches:
                seen["mtp_weight"].append(kwargs["config"].mtp_loss_scaling_factor)
            micro_batches.append(kwargs["labels"].shape[0])
        return mtp(*args, **kwargs)

    register_optimizer_step_pre_hook(at_optimizer_step)
    finalize.get_updated_expert_bias = at_bias_update
    gpt_model.process_mtp_loss = at_mtp_loss
    trainer_ranks.train(rank, recipe, overrides)
    return seen


@pytest.fixture(scope="module")
def watched(recipe, tmp_path_factory) -> tuple[dict[str, list[float]], Path]:
    """A run of twelve steps that was stopped after five and resumed."""
    scratch = tmp_path_factory.mktemp("watched")
    overrides = [f"directory={scratch}/run", "parallel.processes=1", "parallel.expert=1"]
    parts = []
    for number, more in enumerate((["megatron_args.exit-interval=5"], [])):
        (scratch / str(number)).mkdir()
        parts += run_ranks(
            1, train_and_watch, recipe, overrides + more, scratch=scratch / str(number)
        )
    assert [len(part["learning_rate"]) for part in parts] == [5, 7]
    return {name: parts[0][name] + parts[1][name] for name in parts[0]}, scratch / "run"


@pytest.fixture
def used(watched) -> dict[str, list[float]]:
    return watched[0]


@pytest.fixture
def positions(used) -> list[int]:
    """Tokens consumed before each step, and after the last."""
    return [0, *accumulate(sequences * SEQUENCE for sequences in used["sequences"])]


def test_the_batch_grows_as_its_curve_says(used, positions):
    # 8 → 16 sequences over 3000 tokens, in multiples of a micro-batch of 2.
    expected = [min(16, int((8 + 8 * tokens / 3000) // 2) * 2) for tokens in positions[:-1]]
    assert used["sequences"] == expected
    assert len(set(expected)) > 3


def test_the_optimizer_steps_with_the_learning_rate_of_the_curve(used, positions):
    warm, hold, wave = positions[3], positions[8], positions[11]

    def rate(tokens: int) -> float:
        if tokens < warm:
            return 4e-3 * tokens / warm
        if tokens < hold:
            return 4e-3
        if tokens < wave:
            return 4e-4 + 3.6e-3 * (1 + math.cos(math.pi * (tokens - hold) / (wave - hold))) / 2
        return 4e-4

    assert used["learning_rate"] == pytest.approx([rate(tokens) for tokens in positions[:-1]])


def test_router_biases_move_at_the_speed_of_the_curve(used):
    assert used["router_bias_speed"] == [1e-3] * 9 + [0.0] * 3


def test_the_mtp_loss_weighs_what_the_curve_says(used):
    assert used["mtp_weight"] == [0.3] * 6 + [0.1] * 6


def test_the_metrics_tell_what_was_used(watched):
    used, folder = watched
    steps = [line for line in records(folder) if "loss" in line]
    assert [line["iteration"] for line in steps] == list(range(1, STEPS + 1))
    assert [line["batch_size"] for line in steps] == used["sequences"]
    for name in ("learning_rate", "router_bias_speed", "mtp_weight"):
        assert [line[name] for line in steps] == pytest.approx(used[name])


def test_a_growing_batch_saves_no_checkpoints_of_its_own(watched):
    # Upstream saves whenever the number of micro-batches has changed.
    found = sorted(path.name for path in (watched[1] / "checkpoints").glob("iter_*"))
    assert found == ["iter_0000005", "iter_0000008", "iter_0000012"]
