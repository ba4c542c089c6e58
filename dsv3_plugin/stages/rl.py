"""Reinforcement learning: answers of the model to prompts, rewards by rule, and GRPO.

A round begins with an engine on the weights in training, which answers each prompt several times
(`rounds`); what its answers are worth, against others to the same prompt, is what the loss raises
or lowers their probabilities by (arXiv 2402.03300, section 4.1; arXiv 2501.12948). Answers lie in
sequences as conversations do in fine-tuning, and do not see each other. What a token weighs comes
from all answers of the step, so the loss is the same however they are packed and divided.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.utils import get_model_config

from dsv3_plugin.data.batch import Sample, get_packs
from dsv3_plugin.grpo.answers import Answers
from dsv3_plugin.grpo.loss import LogProbabilities, policy_loss
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.judging import Judging, refuse_missing
from dsv3_plugin.stages import entropy, log_probs, sft
from dsv3_plugin.stages.draws import Draws
from dsv3_plugin.stages.held_out_prompts import HeldOutPrompts
from dsv3_plugin.stages.journal import Journal
from dsv3_plugin.stages.learning import Learning
from dsv3_plugin.stages.policy import Policy, judges
from dsv3_plugin.stages.pretrain import chunk_inputs
from dsv3_plugin.stages.rounds import Rounds
from dsv3_plugin.stages.temperature import divided_by
from dsv3_plugin.training.curves import CurveValues
from dsv3_plugin.training.expert_load import ExpertLoad
from dsv3_plugin.training.feed import Feed
from dsv3_plugin.training.metrics import Metrics
from dsv3_plugin.training.prompts import prepare_prompts
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.saving import Saving
from dsv3_plugin.training.stage import Stage


def rl(run: Run) -> Stage:
    """Reinforcement learning, for one run."""
    recipe = run.recipe
    feed, judging, learning = Feed(), Judging.of(recipe), Learning.of(recipe)
    policy = Policy(recipe, judging, run.tell)
    draws = Draws(recipe, policy, Journal(recipe, run.folder, run.tell))
    metrics = Metrics(recipe, run.folder)
    return Stage(
        prepare=partial(prepare, run, policy),
        datasets=lambda inputs: feed.provider,
        forward_step=partial(forward_step, learning),
        hooks=[
            Rounds(run, draws, learning, feed),
            HeldOutPrompts(run, policy, metrics, draws.settle),
            CurveValues(recipe.curves),
            ExpertLoad(),
            Saving(run.folder.checkpoints, recipe.checkpoint.keep),
            metrics,
        ],
        packs=True,
        beside=policy,
        freeze=partial(freeze, recipe),
        needs=partial(needs, recipe),
    )


def needs(recipe: Rl, rank: int) -> Callable[[], None] | None:
    """What a rank judges answers with, if it does."""
    return partial(refuse_missing, recipe.rewards) if judges(recipe, rank) else None


def prepare(run: Run, policy: Policy, tell: Callable[[str], None]) -> None:
    """Folders and prompts, and who answers."""
    prepare_prompts(run, tell)
    policy.open()


def freeze(recipe: Rl, chunks: Sequence[torch.nn.Module]) -> Sequence[torch.nn.Module]:
    """As in fine-tuning; and multi-token prediction trains itself alone: trunk, embedding and head
    are the policy's."""
    for chunk in chunks:
        get_model_config(chunk).mtp_detach_heads = True
    return sft.freeze(recipe, chunks)


def forward_step(
    learning: Learning, samples: Iterator[Sample], model: torch.nn.Module
) -> tuple[Any, Any]:
    """One forward pass of a model chunk, in the form upstream's schedules call it."""
    sample = next(samples)
    batch = get_packs(iter([sample]), chunk_inputs(model))
    wanted = learning.switches.entropy_weight > 0
    with (
        divided_by(model, learning.temperature),
        entropy.of_tokens(model, wanted) as entropies,
    ):
        output = log_probs.computed(model, batch)
    return output, partial(loss, learning, sample, entropies)


def loss(
    learning: Learning, sample: Sample, entropies: list[torch.Tensor], losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """GRPO's loss of a micro-batch.

    Upstream divides the sum of gradients by the sum of tokens that it is told, over micro-batches
    and ranks: so the loss, a part of the step's, is multiplied by that.

    Args:
        learning: the step's advantages and weights.
        sample: the micro-batch, with the answer of each place.
        entropies: `[b, s]` of each place's distribution, if they have a weight.
        losses: `[b, s]`, cross-entropy of each token in nats.

    Returns:
        The loss, the number of tokens, and both for the log.
    """
    of_all = sample["answers"].flatten()
    places = (of_all >= 0).nonzero().flatten()  # on the host, which knows them
    here = places.to(losses.device, non_blocking=True)
    new = -losses.flatten()[here]
    numbers, of_token, lengths = of_all[places].unique_consecutive(
        return_inverse=True, return_counts=True
    )
    answers = Answers(of_token.to(new.device), lengths.to(new.device))
    sampled, old, reference = (
        sample[name].flatten()[places].to(new) if name in sample else None
        for name in ("log_probs", "old", "reference")
    )
    old = new.detach() if old is None else old
    found = policy_loss(
        LogProbabilities(new=new, old=old, reference=reference, sampled=sampled),
        learning.advantages[numbers].to(new),
        answers,
        learning.weights[numbers].to(new),
        learning.switches,
        entropies[0].flatten()[here] if entropies else None,
    )
    learning.look_at(new.detach(), sampled, found)
    tokens = torch.full((), len(places), dtype=torch.int32, device=new.device)
    total = found.value * learning.tokens
    report = torch.stack([total.detach(), tokens.float()])
    return total, tokens, {"policy loss": report}
