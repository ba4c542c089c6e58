"""Thinking apart from the answer over HTTP, of an engine that says what it is told to."""

import contextlib
import dataclasses

import openai
import pytest

from dsv3_plugin.inference.requests import Completion, Progress, TokenReport
from dsv3_plugin.inference.server.app import Server
from dsv3_plugin.inference.server.limits import Limits
from dsv3_plugin.inference.server.messages import About, State
from dsv3_plugin.inference.server.words import words_of
from dsv3_plugin.inference.settings import Counters
from tests.inference.server.serving import CONFIG, listening


class Told:
    """What a server asks, with the same tokens for every answer; see `Worker`."""

    about = About(CONFIG, CONFIG.max_position_embeddings, False)
    state = State(Counters([], []), 0, 0, 1, 0, 0, 0)
    alive, failed = True, False

    def __init__(self, tokens):
        self._tokens = tokens

    def start(self):
        pass

    async def stop(self):
        pass

    @contextlib.asynccontextmanager
    async def answers(self, requests):
        async def progress():
            reports = tuple(TokenReport(token, -1.0, -1.0, (), 0) for token in self._tokens)
            for n, report in enumerate(reports, start=1):
                done = Completion(0, 0, requests[0].prompt, reports, None, "stop")
                ended = done if n == len(reports) else None
                yield 0, Progress(0, 0, (report,), ended)

        yield progress()


@pytest.fixture
def client_told(tokenizer):
    """A client of a server that answers all with a text, to prompts that end with another."""

    @contextlib.contextmanager
    def client(text, prompt_end):
        words = words_of(tokenizer)
        words = dataclasses.replace(words, prompt=lambda said: words_of_prompt(said) + prompt_end)
        (end, *_) = words.ends
        worker = Told([*tokenizer.backend.encode(text, add_special_tokens=False).ids, end])
        server = Server("small", worker, words, Limits(20_000, 50), None)
        with (
            listening(server) as address,
            openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as opened,
        ):
            yield opened

    words_of_prompt = words_of(tokenizer).prompt
    return client


@pytest.mark.parametrize(
    ("text", "prompt_end", "thought", "said"),
    [
        ("so: é < 3</think>\n\nyes", "<think>\n", "so: é < 3", "yes"),
        ("<think>so</think>yes", "", "so", "yes"),
        ("yes", "", None, "yes"),
        ("cut of", "<think>", "cut of", ""),
    ],
)
def test_thinking_is_apart_whole_and_in_pieces(client_told, text, prompt_end, thought, said):
    asked = {"model": "small", "messages": [{"role": "user", "content": "ask"}]}
    with client_told(text, prompt_end) as client:
        (choice,) = client.chat.completions.create(**asked).choices
        assert choice.message.content == said
        assert choice.message.model_extra.get("reasoning_content") == thought
        assert choice.finish_reason == "stop"

        deltas = [
            piece.choices[0].delta for piece in client.chat.completions.create(**asked, stream=True)
        ]
        thoughts = [delta.model_extra.get("reasoning_content") or "" for delta in deltas]
        assert "".join(thoughts) == (thought or "")
        assert "".join(delta.content or "" for delta in deltas) == said
        if thought and said:  # the answer follows, and nothing is told twice
            last = max(place for place, one in enumerate(thoughts) if one)
            assert not any(delta.content for delta in deltas[:last])
        assert not any("think" in (delta.content or "") for delta in deltas)
