"""Sums that are rounded once are the same in the engine and in a forward pass of the trainer's, in
whatever order they are taken."""

import pytest
import torch

from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.logits import main_logits, positions
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.model.build import build_model
from dsv3_plugin.model.rounded_once import here, rounded_once
from tests import oracles

CONFIG = oracles.model_config(max_position_embeddings=512, mtp_num_layers=1)
CPU = torch.device("cpu")


def text_of(length: int) -> list[int]:
    draw = torch.Generator().manual_seed(length)
    return torch.randint(CONFIG.vocab_size, (length,), generator=draw).tolist()


@pytest.fixture(scope="module")
def model(world):
    """One that is sure of itself: its logits are some hundred apart."""
    model = build_model(CONFIG)
    oracles.randomize(model, 6)
    with torch.no_grad():
        model.output_layer.weight.mul_(16)
    return model


def furthest(model) -> float:
    """That an answer's log-probability is from the one of a pass over its text."""
    requests = [
        Request(tuple(text_of(length)), SamplingParameters(max_tokens=20, n=2, seed=length))
        for length in (3, 40, 90)
    ]
    answers = Engine(model, EngineSettings(2**24, drafts=1)).run(requests)
    differences = []
    for answer in answers:
        text = torch.tensor([*answer.prompt, *answer.tokens])
        logs = main_logits(model, text[None, :-1])[0].log_softmax(-1)
        logs = logs.gather(1, text[1:, None])[len(answer.prompt) - 1 :, 0]
        differences.append((torch.tensor(answer.log_probs) - logs).abs().max().item())
    return max(differences)


def test_engine_and_trainer_agree(model) -> None:
    as_they_come = furthest(model)
    with rounded_once(model.config, CPU):
        assert here()
        rounded = furthest(model)
    assert not here()
    assert rounded <= 1e-5 < as_they_come


def test_they_are_those_of_fp64() -> None:
    """One rounding of FP32 from what torch computes in FP64, and nothing else is touched."""
    draw = torch.Generator().manual_seed(1)
    rows, weight = (torch.randn(size, generator=draw) for size in ((7, 300), (300, 5)))
    places = torch.randint(7, (7,), generator=draw)
    ends = torch.tensor([3, 3, 7], dtype=torch.int32)
    sums = {
        "product": lambda x, w: x @ w,
        "norm": lambda x, w: torch.linalg.vector_norm(x, dim=-1),
        "softmax": lambda x, w: torch.softmax(x, -1, out=x.new_empty(x.shape)),
        "logs": lambda x, w: torch.log_softmax(x, -1, dtype=x.dtype),
        "added": lambda x, w: torch.zeros_like(x).index_add_(0, places, x),
        "bags": lambda x, w: torch.nn.functional.embedding_bag(places[:, None], x, mode="sum"),
    }
    model = build_model(CONFIG)
    for name, of in sums.items():
        expected = of(rows.double(), weight.double())
        with rounded_once(model.config, CPU):
            found = of(rows, weight)
            assert of(rows.double(), weight.double()).dtype == torch.float64
            assert of(rows.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
        assert torch.equal(found, expected.float()), name
    each = weight[None].repeat(3, 1, 1)
    with rounded_once(model.config, CPU):
        grouped = torch.nn.functional.grouped_mm(
            rows[:, :296], each[:, :296, :4].clone(), offs=ends
        )
    expected = rows[:, :296].double() @ weight[:296, :4].double()
    assert torch.equal(grouped, expected.float())


def test_gradients_are_as_ever(model) -> None:
    """To 1e-5 of the largest: backward computes in FP32, from values that are rounded otherwise."""
    ids = torch.tensor([text_of(25), text_of(26)[1:]])
    gradients = []
    model.train()
    for block in (
        rounded_once(model.config, CPU),
        rounded_once(model.config, torch.device("cuda")),
    ):
        model.zero_grad()
        with block:
            losses = model(ids[:, :-1], positions(ids[:, :-1]), None, labels=ids[:, 1:])
        losses.mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    largest = max(float(gradient.abs().max()) for gradient in gradients[1].values())
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=0, atol=1e-5 * largest)
