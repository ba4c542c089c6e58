"""GRPO's loss: numbers on which verl and TRL agree, and what must hold whatever the numbers are."""

import pytest
import torch
from torch import Tensor

from dsv3_plugin.grpo.advantages import advantages_of
from dsv3_plugin.grpo.aggregation import token_weights
from dsv3_plugin.grpo.answers import Answers
from dsv3_plugin.grpo.correction import Correction
from dsv3_plugin.grpo.loss import LogProbabilities, Switches, policy_loss
from dsv3_plugin.grpo.surrogate import Clip
from tests.grpo.cases import LONGEST, Case, the_case

PLAIN = Clip(0.2, 0.2)


def loss_of(case: Case, switches: Switches, aggregation: str = "token_mean") -> Tensor:
    return policy_loss(
        LogProbabilities(
            case.packed(case.new),
            case.packed(case.old),
            case.packed(case.reference),
            case.packed(case.sampled),
        ),
        advantages_of(case.rewards).flatten(),
        case.answers,
        token_weights(case.lengths, aggregation, LONGEST),
        switches,
    ).value


@pytest.mark.parametrize(
    ("switches", "aggregation", "expected"),
    [
        (Switches(PLAIN), "token_mean", -0.054671719),
        (Switches(PLAIN), "sequence_mean", 0.012324453),
        (Switches(PLAIN), "dr_grpo", -0.036447813),
        (Switches(Clip(0.2, 0.28)), "token_mean", -0.065581751),
        (Switches(PLAIN, importance="sequence"), "sequence_mean", -0.019404903),
        (Switches(PLAIN, correction=Correction("token", 1.1)), "token_mean", -0.043488944),
    ],
)
def test_losses_are_those_of_verl_and_trl(
    switches: Switches, aggregation: str, expected: float
) -> None:
    """verl 0.9.1 and TRL 1.16.0 were asked for these; test_oracles.py asks them again."""
    assert loss_of(the_case(), switches, aggregation).item() == pytest.approx(expected, abs=1e-9)


def test_the_divergence_is_that_of_verl_and_trl() -> None:
    case = the_case()
    without = loss_of(case, Switches(PLAIN))
    assert (loss_of(case, Switches(PLAIN, kl_weight=1.0)) - without).item() == pytest.approx(
        0.064821800, abs=1e-9
    )


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "dr_grpo"])
@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_a_step_is_the_same_in_any_micro_batches(aggregation: str, importance: str) -> None:
    case = the_case()
    advantages = advantages_of(case.rewards).flatten()
    weights = token_weights(case.lengths, aggregation, LONGEST)
    switches = Switches(Clip(0.2, 0.28, 3.0), importance, kl_weight=0.1)

    def gradient(groups: list[list[int]]) -> tuple[Tensor, Tensor]:
        new = case.new.clone().requires_grad_()
        total = new.new_zeros(())
        for group in groups:
            lengths = case.lengths[group]
            inside = (torch.arange(LONGEST) < lengths[:, None]).nonzero(as_tuple=True)
            logs = LogProbabilities(
                new[group][inside], case.old[group][inside], case.reference[group][inside]
            )
            answers = Answers.of_lengths(lengths)
            loss = policy_loss(logs, advantages[group], answers, weights[group], switches)
            total = total + loss.value
        total.backward()
        return total.detach(), new.grad

    expected, together = gradient([[*range(8)]])
    value, apart = gradient([[5, 0], [1, 7, 2], [3], [6, 4]])
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    assert torch.allclose(apart, together, atol=1e-12)


def test_a_group_of_equal_rewards_gives_no_gradient() -> None:
    new = torch.full((7,), -1.0, dtype=torch.float64, requires_grad=True)
    advantages = advantages_of(torch.full((1, 3), 0.1, dtype=torch.float64)).flatten()
    assert advantages.tolist() == [0, 0, 0]
    lengths = torch.tensor([2, 4, 1])
    weights = token_weights(lengths, "token_mean", 4)
    logs = LogProbabilities(new, new.detach() - 0.1)
    policy_loss(
        logs, advantages, Answers.of_lengths(lengths), weights, Switches(PLAIN)
    ).value.backward()
    assert new.grad.eq(0).all()


def test_entropy_is_a_bonus() -> None:
    lengths = torch.tensor([2, 2])
    logs = LogProbabilities(torch.zeros(4), torch.zeros(4))
    loss = policy_loss(
        logs,
        torch.zeros(2),
        Answers.of_lengths(lengths),
        token_weights(lengths, "token_mean", 4),
        Switches(PLAIN, entropy_weight=0.5),
        entropy=torch.tensor([1.0, 2.0, 3.0, 6.0]),
    )
    assert loss.entropy.item() == 3
    assert loss.value.item() == -1.5


def test_an_answer_without_tokens_has_no_weight() -> None:
    lengths = torch.tensor([0, 3])
    for aggregation in ("token_mean", "sequence_mean", "dr_grpo"):
        assert token_weights(lengths, aggregation, 3).tolist() == pytest.approx([0, 1 / 3])
