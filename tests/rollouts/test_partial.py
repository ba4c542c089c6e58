"""Answers that are gone on with, each token by the weights of its round."""

from collections.abc import Iterator

import pytest
import torch

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.inference.logits import main_logits
from dsv3_plugin.model.build import build_model
from dsv3_plugin.recipe.rl import Rollouts
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.embedded import Embedded
from dsv3_plugin.rollouts.prompts import Prompt
from tests import oracles

LONGEST, MOST, N = 10, 4, 3
ASKED = [
    Asked(Prompt(Conversation([]), None, (), {}, ""), "", tuple(range(1, 2 + length)), "")
    for length in (4, 9)
]


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    with single_process(seed=1):
        yield


def test_each_token_is_of_the_weights_of_its_round() -> None:
    config = oracles.model_config(max_position_embeddings=256, mtp_num_layers=1)
    model = build_model(config)
    settings = Rollouts(
        prompts=2, n=N, max_prompt_tokens=16, max_tokens=LONGEST, partial=MOST, temperature=0.7
    )
    ends = frozenset(range(85, 96))  # so that some answers end
    engine = Embedded([model], settings, 2 * N, ends)
    begun: list[tuple] = [(), ()]
    weights = []
    for number in range(3):
        oracles.randomize(model, number)
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()
                        if isinstance(tensor, torch.Tensor)})  # fmt: skip
        seeds = [10 * number, 10 * number + 1]
        before = begun
        begun = engine.answers(ASKED, N, seeds, version=7 + number, begun=before, most=MOST)
        for own, now in zip(before, begun, strict=True):
            assert len(now) == N
            for answer, more in zip(own, now, strict=bool(own)):
                assert more.tokens[: len(answer.tokens)] == answer.tokens
                assert answer.unfinished or more == answer
    answers = [answer for own in begun for answer in own]
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    assert len({answer.tokens for answer in answers}) > N
    for one, own in zip(ASKED, begun, strict=True):
        for answer in own:
            assert answer.prompt == one.tokens
            length = len(answer.tokens)
            assert (answer.finish_reason == "length") == (
                length == LONGEST and answer.tokens[-1] not in ends
            )
            assert answer.versions == ((7,) * 4 + (8,) * 4 + (9,) * 2)[:length]
            tokens = torch.tensor([[*one.tokens, *answer.tokens]])
            for number, state in enumerate(weights):
                model.load_state_dict(state, strict=False)
                logs = (main_logits(model, tokens)[0] / 0.7).log_softmax(-1)
                for place, version in enumerate(answer.versions):
                    if version == 7 + number:
                        at = len(one.tokens) + place
                        expected = float(logs[at - 1, tokens[0, at]])
                        assert answer.log_probs[place] == pytest.approx(expected, abs=1e-5)
