"""Every switch of GRPO's loss against verl's and TRL's own functions: values and gradients."""

import itertools
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_plugin.grpo.advantages import advantages_of
from dsv3_plugin.grpo.aggregation import token_weights
from dsv3_plugin.grpo.correction import Correction, correction_weights
from dsv3_plugin.grpo.kl import divergence
from dsv3_plugin.grpo.loss import LogProbabilities, Switches, policy_loss
from dsv3_plugin.grpo.overlong import overlong_penalty
from dsv3_plugin.grpo.ratios import log_ratios
from dsv3_plugin.grpo.surrogate import Clip
from dsv3_plugin.stages.entropy import entropy
from tests.grpo.cases import ANSWERS, LONGEST, PROMPTS, Case, the_case

pytestmark = [
    pytest.mark.rl,
    pytest.mark.skipif(
        not all(map(find_spec, ("verl", "trl"))),
        reason="verl and TRL are not installed: `make test-rl` makes a place for them",
    ),
]

AGGREGATIONS = {
    "token_mean": ("token-mean", "dapo"),
    "sequence_mean": ("seq-mean-token-mean", "grpo"),
    "dr_grpo": ("seq-mean-token-sum-norm", "dr_grpo"),
}
"""Ours → verl's and TRL's."""


@pytest.fixture(scope="module", params=[0.3, 3.0], ids=["near", "far"])
def case(request: pytest.FixtureRequest) -> Case:
    """Ratios inside and beside the clip, and many beyond it."""
    return the_case(request.param)


def ours(
    case: Case, switches: Switches, aggregation: str, entropies: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    new = case.new.clone().requires_grad_()
    logs = LogProbabilities(
        *(case.packed(each) for each in (new, case.old, case.reference, case.sampled))
    )
    loss = policy_loss(
        logs,
        advantages_of(case.rewards).flatten(),
        case.answers,
        token_weights(case.lengths, aggregation, LONGEST),
        switches,
        None if entropies is None else case.packed(entropies),
    ).value
    loss.backward()
    return loss.detach(), new.grad


def verls_advantages(case: Case, scale: bool = True) -> Tensor:
    from verl.trainer.ppo import core_algos

    last = torch.zeros_like(case.new)
    last[range(len(last)), case.lengths - 1] = case.rewards.flatten()
    groups = torch.arange(PROMPTS).repeat_interleave(ANSWERS).numpy()
    advantages, _ = core_algos.compute_grpo_outcome_advantage(
        last, case.mask, groups, norm_adv_by_std_in_grpo=scale
    )
    return advantages


def verls_corrections(case: Case, correction: Correction) -> Tensor:
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

    masks = correction.level == "mask"
    weights, _ = compute_rollout_correction_weights(
        case.old - case.sampled,
        case.mask,
        "token" if masks else correction.level,
        f"{correction.low}_{correction.high}" if masks else correction.high,
    )
    return weights


def verls(
    case: Case, switches: Switches, aggregation: str, kind: str = "vanilla"
) -> tuple[Tensor, Tensor]:
    from verl.trainer.ppo import core_algos
    from verl.workers.config import ActorConfig

    new = case.new.clone().requires_grad_()
    mode = AGGREGATIONS[aggregation][0]
    clip, correction = switches.clip, switches.correction
    settings = ActorConfig(
        strategy="fsdp",
        rollout_n=ANSWERS,
        ppo_micro_batch_size_per_gpu=1,
        clip_ratio_low=clip.low,
        clip_ratio_high=clip.high,
        clip_ratio_c=clip.dual or 1e30,
    )
    weights = None
    if correction is not None:
        weights = verls_corrections(case, correction)
    loss, _ = core_algos.get_policy_loss_fn(kind)(
        case.old, new, verls_advantages(case), case.mask, mode, settings,
        rollout_is_weights=weights,
    )  # fmt: skip
    if switches.kl_weight:
        kl = core_algos.kl_penalty(new, case.reference, switches.kl)
        loss = loss + switches.kl_weight * core_algos.agg_loss(kl, case.mask, mode)
    loss.backward()
    return loss.detach(), new.grad


def trls(case: Case, switches: Switches, aggregation: str) -> tuple[Tensor, Tensor]:
    from collections import defaultdict

    from trl.trainer.grpo_trainer import GRPOTrainer

    new = case.new.clone().requires_grad_()
    clip, correction = switches.clip, switches.correction
    alone = SimpleNamespace(
        num_processes=1, gather=_same, gather_for_metrics=_same, reduce=lambda x, **_: x
    )
    trainer: Any = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=switches.importance,
        beta=switches.kl_weight,
        loss_type=AGGREGATIONS[aggregation][1],
        epsilon_low=clip.low,
        epsilon_high=clip.high,
        use_vllm=correction is not None,
        vllm_importance_sampling_correction=True,
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(
            delta=clip.dual,
            use_bias_correction_kl=switches.kl == "unbiased",
            steps_per_generation=1,
        ),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _log_metric=lambda *_: None,
        accelerator=alone,
    )
    weights = None
    if correction is not None:
        weights = (case.old - case.sampled).exp().clamp(max=correction.high)
    loss = GRPOTrainer._compute_loss(
        trainer,
        None,
        {
            "prompt_ids": torch.zeros(len(new), 1).long(),
            "prompt_mask": torch.ones(len(new), 1).long(),
            "completion_ids": torch.zeros(new.shape).long(),
            "completion_mask": case.mask,
            "advantages": advantages_of(case.rewards).flatten(),
            "old_per_token_logps": case.old,
            "ref_per_token_logps": case.reference,
            "importance_sampling_ratio": weights,
            "num_items_in_batch": case.mask.sum(),
        },
    )
    loss.backward()
    return loss.detach(), new.grad


def _same(value: Any) -> Any:
    return value


def agree(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


CLIPS = [Clip(0.2, 0.2), Clip(0.2, 0.28), Clip(0.2, 0.28, 3.0), Clip(0.1, 0.5, 10.0)]
CORRECTIONS = [None, Correction("token", 1.1)]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize(("clip", "correction"), itertools.product(CLIPS, CORRECTIONS))
@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_losses_and_gradients_are_verls(
    case: Case, aggregation: str, clip: Clip, correction: Correction | None, kl: str
) -> None:
    switches = Switches(clip, kl=kl, kl_weight=0.1, correction=correction)
    agree(ours(case, switches, aggregation), verls(case, switches, aggregation))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_sequence_ratios_are_verls_gspo(case: Case, aggregation: str) -> None:
    switches = Switches(Clip(0.2, 0.28), importance="sequence")
    agree(ours(case, switches, aggregation), verls(case, switches, aggregation, "gspo"))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("kl", ["k3", "unbiased"])
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_losses_and_gradients_are_trls(
    aggregation: str, kl: str, correction: Correction | None
) -> None:
    """Its k3 has no bound, so ratios are kept near."""
    switches = Switches(Clip(0.2, 0.28), kl=kl, kl_weight=0.1, correction=correction)
    case = the_case()
    agree(ours(case, switches, aggregation), trls(case, switches, aggregation))


def test_sequence_losses_are_trls(case: Case) -> None:
    """Values and not gradients: TRL has each token move the mean, GSPO-token itself."""
    switches = Switches(Clip(0.2, 0.28), importance="sequence")
    found, expected = ours(case, switches, "sequence_mean"), trls(case, switches, "sequence_mean")
    agree(found[:1], expected[:1])


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_are_verls(case: Case, scale: str) -> None:
    expected = verls_advantages(case, scale == "group")[:, 0]
    agree((advantages_of(case.rewards, scale).flatten(),), (expected,))


def test_divergences_at_every_token_are_verls(case: Case) -> None:
    from verl.trainer.ppo import core_algos

    for estimate in ("k1", "k3"):
        expected = core_algos.kl_penalty(case.new, case.reference, estimate)
        agree((divergence(case.new, case.reference, estimate),), (expected,))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_masked_losses_and_gradients_are_verls_icepop(case: Case, aggregation: str) -> None:
    switches = Switches(Clip(0.2, 0.28, 3.0), correction=Correction("mask", 1.1, 0.9))
    agree(ours(case, switches, aggregation), verls(case, switches, aggregation))


@pytest.mark.parametrize(
    "correction",
    [Correction("token", 1.1), Correction("sequence", 1.1), Correction("mask", 1.1, 0.9)],
    ids=lambda correction: correction.level,
)
def test_corrections_are_verls(case: Case, correction: Correction) -> None:
    weights = case.packed(verls_corrections(case, correction))
    found = correction_weights(
        case.packed(case.old), case.packed(case.sampled), case.answers, correction
    )
    agree((found,), (weights,))
    assert (weights == 0).any() == (correction.level == "mask")


def test_entropies_and_their_gradients_are_verls_and_trls() -> None:
    from trl.trainer.utils import entropy_from_logits as trls_entropy
    from verl.utils.torch_functional import entropy_from_logits as verls_entropy

    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, 40, generator=draw)
    weights = torch.randn(2, 5, generator=draw)

    def found(function: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        given = logits.to(dtype, copy=True).requires_grad_()
        entropies = function(given)
        (entropies * weights).sum().backward()
        return entropies.detach().double(), given.grad.double()

    # Ours is FP32's; theirs loses more in that, and is taken in FP64.
    own = found(entropy, torch.float32)
    agree(own, found(verls_entropy, torch.float64))
    agree(own[:1], (trls_entropy(logits.double()),))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_bonus_on_entropy_is_verls(case: Case, aggregation: str) -> None:
    """Aggregated as the loss of the policy is, value and gradient."""
    from verl.trainer.ppo.core_algos import agg_loss

    draw = torch.Generator().manual_seed(1)
    entropies = torch.rand(case.new.shape, generator=draw, dtype=torch.float64)

    mine = entropies.clone().requires_grad_()
    switches = Switches(Clip(0.2, 0.2), entropy_weight=0.05)
    loss, _ = ours(case, switches, aggregation, mine)
    theirs = entropies.clone().requires_grad_()
    bonus = 0.05 * agg_loss(theirs, case.mask, AGGREGATIONS[aggregation][0])
    (-bonus).backward()
    expected = verls(case, Switches(Clip(0.2, 0.2)), aggregation)[0] - bonus.detach()
    agree((loss, mine.grad), (expected, theirs.grad))


@pytest.mark.parametrize(("longest", "margin"), [(12, 5), (12, 12), (12, 1), (12, 0)])
def test_overlong_answers_are_punished_as_trl_does(longest: int, margin: int) -> None:
    from trl.rewards import get_soft_overlong_punishment

    lengths = range(longest + 3)
    expected = get_soft_overlong_punishment(longest, margin)([[1] * n for n in lengths])
    found = [overlong_penalty(n, longest, margin) for n in lengths]
    assert found[: longest + 1] == pytest.approx(expected[: longest + 1])
    if margin:  # without one there is no bound to be over: an answer is cut there
        assert found == pytest.approx(expected)


def test_ratios_far_away_are_bounded_as_verls() -> None:
    answers = the_case().answers
    new = torch.full((int(answers.lengths.sum()),), 100.0)
    assert log_ratios(new, -new, answers, "token").max() == 20
