"""The loss of answers, by the model that training computes with."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from dsv3_plugin.checkpoint.load import load_for_inference
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.grpo.aggregation import token_weights
from dsv3_plugin.inference.logits import main_logits
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.rl import Grpo
from dsv3_plugin.recipe.section import Section
from dsv3_plugin.rollouts.rows import Text, micro_batches, packed
from dsv3_plugin.stages import rl
from dsv3_plugin.stages.draws import Draws
from dsv3_plugin.stages.learning import Learning, switches_of
from dsv3_plugin.stages.policy import Policy
from dsv3_plugin.training.feed import Feed
from dsv3_plugin.training.run import Run
from dsv3_plugin.training.stage import Stage
from tests.small_runs import Trained

LENGTHS = ((5, 7), (3, 1), (8, 12), (2, 4), (6, 9))
"""Tokens of each prompt and its answer."""


@pytest.fixture(scope="module")
def model(trained: Trained) -> GPTModel:
    with single_process(seed=1):
        model, _ = load_for_inference(trained.checkpoints)
        rl.freeze(SimpleNamespace(mtp="train", router="freeze"), [model.train()])
        model.config.calculate_per_token_loss = True
        yield model


def drawn(seed: int = 0) -> list[Text]:
    draw = torch.Generator().manual_seed(seed)
    texts = []
    for prompt, answer in LENGTHS:
        tokens = torch.randint(3, 500, (prompt + answer,), generator=draw).tolist()
        logs = (-4 + torch.randn(answer, generator=draw)).tolist()
        texts.append(Text(tokens[:prompt], tokens[prompt:], logs, logs))
    return texts


@dataclass
class Computed:
    loss: float
    gradients: dict[str, Tensor]


def computed(
    model: GPTModel,
    texts: list[Text],
    advantages: list[float],
    *,
    room: int = 32,
    size: int = 1,
    ranks: int = 1,
    mtp_weight: float = 0.0,
    **grpo: object,
) -> Computed:
    """The step's loss and gradients, as upstream adds them up over micro-batches and ranks."""
    settings = Grpo(**grpo)
    learning = Learning(switches_of(settings))
    lengths = torch.tensor([len(text.answer) for text in texts])
    weights = token_weights(lengths, settings.aggregation, 16)
    learning.begin(torch.tensor(advantages), weights, int(lengths.sum()))
    model.config.mtp_loss_scaling_factor = mtp_weight
    model.zero_grad()
    rows = packed(texts, room, size * ranks, 0)
    total, tokens = 0.0, 0
    for rank in range(ranks):
        for sample in micro_batches(rows, size, rank, ranks):
            output, of_output = rl.forward_step(learning, iter([sample]), model)
            value, count, _ = of_output(output)
            value.backward()
            total, tokens = total + float(value), tokens + int(count)
    gradients = {
        name: parameter.grad / tokens
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return Computed(total / tokens, gradients)


ADVANTAGES = [1.0, -0.5, 0.3, -1.2, 0.4]


def close(one: Computed, other: Computed) -> None:
    assert one.loss == pytest.approx(other.loss, abs=1e-6)
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(gradient, other.gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "dr_grpo"])
@pytest.mark.parametrize(
    ("room", "size", "ranks"), [(64, 1, 1), (20, 2, 1), (32, 1, 3), (24, 2, 2)]
)
def test_it_is_the_same_however_answers_lie(model, aggregation, room, size, ranks):
    """Packed otherwise, in micro-batches of another size, on more ranks."""
    settings = {"aggregation": aggregation, "importance": "sequence", "entropy_weight": 0.1}
    alone = computed(model, drawn(), ADVANTAGES, room=20, **settings)
    close(
        computed(model, drawn(), ADVANTAGES, room=room, size=size, ranks=ranks, **settings), alone
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_are_those_of_each_text_alone(model, temperature):
    """And of the tokens that were sampled: not of those one place further."""
    texts = drawn()
    seen: dict[int, Tensor] = {}
    [sample] = micro_batches(packed(texts, 64, 1, 0), 1, 0, 1)
    learning = Learning(switches_of(Grpo()), temperature)
    output, _ = rl.forward_step(learning, iter([sample]), model)
    for number in range(len(texts)):
        seen[number] = -output.flatten()[sample["answers"].flatten() == number]
    for number, text in enumerate(texts):
        tokens = torch.tensor([[*text.prompt, *text.answer]])
        logs = (main_logits(model, tokens)[0] / temperature).log_softmax(-1)
        begin = len(text.prompt)
        expected = torch.stack(
            [logs[place - 1, tokens[0, place]] for place in range(begin, tokens.shape[1])]
        )
        torch.testing.assert_close(seen[number], expected, atol=1e-5, rtol=0)
    model.train()


def test_a_model_that_knows_every_next_token_has_nothing_to_lose():
    texts = drawn()
    [sample] = micro_batches(packed(texts, 64, 1, 0), 1, 0, 1)
    learning = Learning(switches_of(Grpo()))
    lengths = torch.tensor([len(text.answer) for text in texts])
    learning.begin(torch.tensor(ADVANTAGES), token_weights(lengths, "token_mean", 16), 33)
    known = torch.where(sample["answers"] >= 0, 0.0, 9.0)  # nats; dear where nothing is sampled
    rl.loss(learning, sample, [], known)
    assert learning._sums()[0] == 0
    assert learning._sums()[1] == lengths.sum()


@pytest.mark.parametrize(
    ("level", "share"), [("token", 7 / 33), ("mask", 7 / 33), ("sequence", 1 / 5)]
)
def test_the_share_that_a_correction_truncates_is_told(model, level: str, share: float):
    """Of tokens or of answers: the first answer's ratio is 3 at each of its tokens, others' 1."""
    texts = [replace(text, old=None) for text in drawn()]
    lengths = torch.tensor([len(text.answer) for text in texts])
    assert lengths.tolist() == [7, 1, 12, 4, 9]
    learning = Learning(switches_of(Grpo(on_mismatch="correct", correction=level)))
    learning.begin(torch.tensor(ADVANTAGES), token_weights(lengths, "token_mean", 16), 33)
    for sample in micro_batches(packed(texts, 32, 1, 0), 1, 0, 1):
        likelier = torch.where(sample["answers"] == 0, math.log(3), 0.0)
        rl.loss(learning, sample, [], -sample["log_probs"] - likelier)
    assert learning.numbers()["rl/correction_truncated"] == pytest.approx(share)

    alone = Learning(switches_of(Grpo()))
    assert "rl/correction_truncated" not in alone.numbers()


def test_a_bonus_on_entropy_is_the_models_own(model):
    """Of the distributions that answers are drawn from, each text alone: value and gradient."""
    found = computed(model, drawn(), [0.0] * len(LENGTHS), entropy_weight=0.5)
    model.zero_grad()
    entropies = []
    for text in drawn():
        tokens = torch.tensor([[*text.prompt, *text.answer]])
        places = torch.arange(tokens.shape[1])[None]
        logits = model(input_ids=tokens, position_ids=places, attention_mask=None)[0]
        logs = logits[len(text.prompt) - 1 : -1].float().log_softmax(-1)
        entropies.append(-(logs.exp() * logs).sum(-1))
    value = -0.5 * torch.cat(entropies).mean()
    value.backward()
    assert found.loss == pytest.approx(value.item(), abs=1e-6)
    assert -found.loss / 0.5 > 3  # nats, of 6.2 at the most
    own = [name for name in found.gradients if not name.startswith("mtp.")]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert any(found.gradients[name].abs().max() > 1e-4 for name in own)
    for name in own:
        torch.testing.assert_close(found.gradients[name], gradients[name], rtol=1e-4, atol=1e-6)


def test_a_step_without_answers_teaches_nothing(model):
    """Where nothing of a round is learned from, or all of it is gone on with."""
    learning = Learning(switches_of(Grpo(), older=True))
    learning.begin(torch.tensor([]), token_weights(torch.tensor([]), "token_mean", 16), 0)
    [sample] = micro_batches(packed([], 32, 1, 0), 1, 0, 1)
    output, of_output = rl.forward_step(learning, iter([sample]), model)
    value, count, _ = of_output(output)
    model.zero_grad()
    value.backward()
    assert (float(value), int(count)) == (0, 0)
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_frozen_routers_have_no_gradient(model):
    found = computed(model, drawn(), ADVANTAGES, mtp_weight=0.3)
    assert not any(".router." in name for name in found.gradients)


def test_two_runs_in_one_process_share_nothing(model, tmp_path):
    """The steps of two, each between the other's, are what they are alone."""

    def begun(temperature: float, advantages: list[float], **grpo: object):
        settings = Grpo(**grpo)
        learning = Learning(switches_of(settings), temperature)
        lengths = torch.tensor([len(text.answer) for text in drawn()])
        weights = token_weights(lengths, settings.aggregation, 16)
        learning.begin(torch.tensor(advantages), weights, int(lengths.sum()))
        batches = micro_batches(packed(drawn(), 20, 1, 0), 1, 0, 1)
        return learning, iter(batches), len(batches)

    def found(*runs: tuple[Learning, Any, int]) -> list[tuple[list[float], Tensor]]:
        values: list[list[float]] = [[] for _ in runs]
        for _ in range(runs[0][2]):
            outputs = [rl.forward_step(learning, rows, model) for learning, rows, _ in runs]
            for own, (output, of_output) in zip(values, outputs, strict=True):
                own.append(of_output(output)[0].item())
        return [(own, run[0]._sums()) for own, run in zip(values, runs, strict=True)]

    kinds = [
        (1.0, ADVANTAGES, {}),
        (0.5, ADVANTAGES[::-1], {"entropy_weight": 0.1, "importance": "sequence"}),
    ]
    runs = [begun(kind, advantages, **grpo) for kind, advantages, grpo in kinds]
    alone = [found(run)[0] for run in runs]
    together = found(*(begun(kind, advantages, **grpo) for kind, advantages, grpo in kinds))
    for (expected, sums), (values, seen) in zip(alone, together, strict=True):
        assert values == expected
        assert torch.equal(seen, sums)
    assert alone[0][0] != alone[1][0]

    recipe = load_recipe("rl/tiny", [f"directory={tmp_path}"])
    stages = [rl.rl(Run(recipe, recipe.run_folder, Machine.here())) for _ in range(2)]
    one, other = ({id(thing): thing for thing in changing(stage)} for stage in stages)
    assert not one.keys() & other.keys()
    assert {type(thing) for thing in one.values()} >= {Learning, Feed, Policy, Draws}


def changing(stage: Stage) -> Iterator[object]:
    """What a run of the stage changes: objects of ours that are not frozen, however deep."""
    seen: set[int] = set()
    waiting: list[object] = [stage]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, partial):
            waiting += [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, Mapping):
            waiting += thing.values()
        elif isinstance(thing, list | tuple | deque):
            waiting += thing
        elif isinstance(thing, MethodType):
            waiting.append(thing.__self__)
        elif type(thing).__module__.startswith("dsv3_plugin.") and hasattr(thing, "__dict__"):
            waiting += vars(thing).values()
            parameters = getattr(thing, "__dataclass_params__", None)
            if not (isinstance(thing, Section) or (parameters and parameters.frozen)):
                yield thing


def test_equal_rewards_give_no_gradient(model):
    found = computed(model, drawn(), [0.0] * len(LENGTHS))
    assert found.loss == 0
    assert found.gradients
    assert all(not gradient.any() for gradient in found.gradients.values())


def test_multi_token_prediction_trains_itself_alone(model):
    """The policy's gradients are the same with its loss and without, bit for bit."""
    without = computed(model, drawn(), ADVANTAGES, room=64)
    beside = computed(model, drawn(), ADVANTAGES, room=64, mtp_weight=0.3)
    own = {name for name in beside.gradients if name.startswith("mtp.")}
    assert any(beside.gradients[name].any() for name in own)
    for name in beside.gradients.keys() - own:
        assert torch.equal(beside.gradients[name], without.gradients[name]), name
