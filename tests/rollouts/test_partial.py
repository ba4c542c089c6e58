"""Answers that are gone on with, each token by the weights of its round."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import chain

import pytest
import torch

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.inference.engine import Engine, EngineSettings
from dsv3_plugin.inference.logits import main_logits
from dsv3_plugin.inference.requests import Request, SamplingParameters
from dsv3_plugin.model.build import build_model
from dsv3_plugin.recipe.rl import Rollouts
from dsv3_plugin.rollouts import openai
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


class Serving:
    """An endpoint of an engine in this process, which can be started again."""

    address = "http://there"

    def __init__(self, engine: Engine, ends: frozenset[int]) -> None:
        self._engine, self._ends = engine, ends
        self._taken = self._number = 0

    def take_weights(self, folder: str, by: str) -> int:
        self._engine.weights_changed()
        self._taken = self._number = self._taken + 1
        return self._number

    def start_again(self) -> None:
        self._number = 0

    def complete(
        self, prompt: list[int], sampling: SamplingParameters, *, reported: bool, experts: bool
    ) -> Future:
        sampling = replace(sampling, stop_tokens=self._ends)
        choices = [
            {
                "index": index,
                "text": "",
                "finish_reason": answer.finish_reason,
                "prompt_token_ids": prompt,
                "token_ids": answer.tokens,
                "logprobs": {"token_logprobs": answer.sampling_log_probs},
                "weights_versions": [self._number] * len(answer.tokens),
            }
            for index, answer in enumerate(self._engine.run([Request(tuple(prompt), sampling)]))
        ]
        asked: Future = Future()
        asked.set_result({"choices": choices})
        return asked


def test_each_token_is_of_the_weights_of_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the engine is here or a server's: these come to the same answers, also where the
    server has been started again before a round."""
    config = oracles.model_config(max_position_embeddings=256, mtp_num_layers=1)
    model = build_model(config)
    settings = Rollouts(
        prompts=2, n=N, max_prompt_tokens=16, max_tokens=LONGEST, partial=MOST, temperature=0.7
    )
    ends = frozenset(range(85, 96))  # so that some answers end
    engine = Embedded([model], settings, 2 * N, ends)
    monkeypatch.setattr(openai, "refuse_other_tokenizer", lambda *_: None)
    serving = Serving(Engine([model], EngineSettings(2**22)), ends)
    drawn = SamplingParameters(max_tokens=LONGEST, temperature=0.7)
    server = openai.OpenAi(serving, drawn, None, config.vocab_size, 64, ends)
    begun: list[tuple] = [(), ()]
    weights = []
    for number in range(3):
        oracles.randomize(model, number)
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()
                        if isinstance(tensor, torch.Tensor)})  # fmt: skip
        seeds = [10 * number, 10 * number + 1]
        before = begun
        server.hand_on("there")
        if number == 1:
            serving.start_again()
        of_server = server.answers(ASKED, N, seeds, version=7 + number, begun=before, most=MOST)
        begun = engine.answers(ASKED, N, seeds, version=7 + number, begun=before, most=MOST)
        for own, now in zip(before, begun, strict=True):
            assert len(now) == N
            for answer, more in zip(own, now, strict=bool(own)):
                assert more.tokens[: len(answer.tokens)] == answer.tokens
                assert answer.unfinished or more == answer
        for mine, theirs in zip(chain(*begun), chain(*of_server), strict=True):
            assert mine.log_probs == pytest.approx(theirs.log_probs, abs=1e-5)
            assert replace(mine, log_probs=theirs.log_probs) == theirs
        if number == 1:  # and then once more
            assert server.made_again == sum(answer.unfinished for answer in chain(*before))
    assert not server.lost
    assert not server.put_off
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
