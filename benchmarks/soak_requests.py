"""Random requests for `soak.py`: what a server answers, and what it must refuse."""

import json
import random
from dataclasses import dataclass
from typing import Any

TEXTS = (
    "def f(x):\n    return x\n",
    "class Parser:\n    def __init__(self, prog=None, usage=None):\n",
    "import os\nimport sys\n\n\ndef main():\n    ",
    "naïve 😀 text, with é",
)
LONG = 200
"""Tokens that half of the answers have more of."""


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        number: which.
        route: of the server.
        body: JSON.
        leaves: whether the client goes away before it has its answer.
        kind: in a word or two, for the table.
    """

    number: int
    route: str
    body: dict[str, Any]
    leaves: bool
    kind: str

    @property
    def streams(self) -> bool:
        """Whether it is answered in pieces."""
        return bool(self.body.get("stream"))


def random_requests(count: int, name: str, vocabulary: int, seed: int) -> list[Asked]:
    """Requests to a model: every third is left, a third is drawn, half are for long answers."""
    draw = random.Random(seed)
    return [_request(number, name, vocabulary, draw) for number in range(count)]


def _request(number: int, name: str, vocabulary: int, draw: random.Random) -> Asked:
    long = number % 2 == 0
    body: dict[str, Any] = {
        "model": name,
        "max_tokens": draw.randint(LONG + 1, LONG + 60) if long else draw.randint(1, 40),
        "return_token_ids": True,
        "stream": draw.random() < 0.5,
        "temperature": 0.0,
        "seed": draw.randrange(2**31),
    }
    if (number // 2) % 3 == 0:
        body |= {"temperature": draw.choice([0.5, 0.8, 1.0, 1.3])}
        body |= draw.choice([{}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.05}])
    if draw.random() < 0.15:
        body["repetition_penalty"] = 1.1
    if draw.random() < 0.15:
        body["logit_bias"] = {str(draw.randrange(vocabulary)): draw.choice([-5.0, 3.0])}
    if draw.random() < 0.2:
        body["n"] = draw.randint(2, 3)
    leaves = (number // 6) % 3 == 0
    if draw.random() < 0.3:
        body["messages"] = [{"role": "user", "content": draw.choice(TEXTS)}]
        if draw.random() < 0.3:
            body |= {"logprobs": True, "top_logprobs": draw.randint(1, 5)}
        return Asked(number, "chat/completions", body, leaves, _kind("chat", body))
    if draw.random() < 0.5:
        body["prompt"] = draw.choice(TEXTS) * draw.randint(1, 12)
    else:  # beginnings that others have too
        length = draw.randint(1, 400)
        shared = [5 + (place * 7) % 200 for place in range(length)]
        own = [draw.randrange(5, vocabulary) for _ in range(draw.randint(1, 20))]
        body["prompt"] = shared + own if draw.random() < 0.5 else own
    if draw.random() < 0.3:
        body["logprobs"] = draw.randint(0, 5)
        body["echo"] = not body["stream"] and draw.random() < 0.5
    return Asked(number, "completions", body, leaves, _kind("completion", body))


def _kind(what: str, body: dict[str, Any]) -> str:
    return f"{what}, {'streamed' if body['stream'] else 'whole'}"


def malformed(name: str, vocabulary: int, positions: int) -> list[tuple[bytes, tuple[int, ...]]]:
    """Bodies that are refused, each with the statuses that are right."""

    def body(**more: Any) -> bytes:
        return json.dumps({"model": name, "prompt": "x"} | more).encode()

    return [
        (b"{", (400,)),
        (b"", (400,)),
        (b"[" * 5000, (400,)),
        (b'{"model": "\xff"}', (400,)),
        (b'{"model": "%s", "prompt": "\\ud800"}' % name.encode(), (400,)),
        (b'{"model": "%s", "prompt": "x", "top_p": NaN}' % name.encode(), (400,)),
        (body(model="another"), (404,)),
        (body(prompt=[]), (400,)),
        (body(prompt=[[]]), (400,)),
        (body(prompt=[vocabulary]), (400,)),
        (body(prompt=[-1]), (400,)),
        (body(prompt=[1] * positions), (400,)),
        (body(max_tokens=10**9), (400,)),
        (body(n=10**6), (400,)),
        (body(temperature="warm"), (400,)),
        (body(logprobs=99), (400,)),
        (body(echo=True, stream=True), (400,)),
        (body(nonsense=1), (400,)),
        (body(stop=[""]), (400,)),
        (body(prompt="x" * (2**20 + 64 * positions)), (413,)),
    ]
