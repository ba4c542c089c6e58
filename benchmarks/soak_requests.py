"""Random requests for `soak.py`: what a server answers, and what it must refuse."""

import json
import random
from dataclasses import dataclass
from typing import Any

from soak_server import THINK

TEXTS = (
    "def f(x):\n    return x\n",
    "class Parser:\n    def __init__(self, prog=None, usage=None):\n",
    "import os\nimport sys\n\n\ndef main():\n    ",
    "naïve 😀 text, with é",
)
LONG = 200
"""Tokens that half of the answers have more of."""
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "id": "1", "function": {"name": "add", "arguments": "{}"}}


@dataclass(frozen=True)
class Vocabulary:
    """What requests say of tokens.

    Attributes:
        size: of the model's.
        end: the token that ends an answer.
        thought: the token that ends its thinking.
    """

    size: int
    end: int
    thought: int


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        number: which.
        route: of the server.
        body: JSON.
        leaves: whether the client goes away before it has its answer.
        kind: in a word or two, for the table.
        late: whether it asks for more than there is time for.
    """

    number: int
    route: str
    body: dict[str, Any]
    leaves: bool
    kind: str
    late: bool = False

    @property
    def streams(self) -> bool:
        """Whether it is answered in pieces."""
        return bool(self.body.get("stream"))

    @property
    def prompts(self) -> list[Any]:
        """Texts, ids or a conversation, each of which is answered."""
        if "messages" in self.body:
            return [self.body["messages"]]
        prompt = self.body["prompt"]
        return prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


def random_requests(count: int, name: str, tokens: Vocabulary, seed: int) -> list[Asked]:
    """Requests to a model: a third is left, a good third drawn, a good half for long answers."""
    draw = random.Random(seed)

    def share(part: float) -> list[bool]:
        flags = [number < part * count for number in range(count)]
        draw.shuffle(flags)
        return flags

    flags = zip(share(1 / 3), share(0.37), share(0.55), strict=True)
    return [
        _request(number, name, tokens, draw, *three) for number, three in enumerate(flags)
    ]  # fmt: skip


def late_requests(count: int, name: str, tokens: Vocabulary, seed: int) -> list[Asked]:
    """Requests for answers that take long, and short ones between."""
    draw = random.Random(seed)
    asked = []
    for number in range(count):
        late = number % 2 == 0
        body = _body(name, draw, long=False) | {"prompt": draw.choice(TEXTS)}
        body["logit_bias"] = {str(tokens.end): -100.0}
        body |= {"n": 8, "max_tokens": 900} if late else {"max_tokens": 4}
        kind = "too much for the time" if late else "little, beside too much"
        asked.append(Asked(number, "completions", body, False, kind, late))
    return asked


def _body(name: str, draw: random.Random, *, long: bool) -> dict[str, Any]:
    stream = draw.random() < 0.5
    return {
        "model": name,
        "max_tokens": draw.randint(LONG + 1, LONG + 60) if long else draw.randint(1, 40),
        "return_token_ids": True,
        "return_routed_experts": True,
        "stream": stream,
        **({"stream_options": {"include_usage": True}} if stream else {}),
        "temperature": 0.0,
        "seed": draw.randrange(2**31),
    }


def _request(
    number: int,
    name: str,
    tokens: Vocabulary,
    draw: random.Random,
    leaves: bool,
    drawn: bool,
    long: bool,
) -> Asked:
    long |= leaves  # or many would have their answer before they go
    body = _body(name, draw, long=long)
    if drawn:
        body |= {"temperature": draw.choice([0.5, 0.8, 1.0, 1.3])}
        body |= draw.choice([{}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.05}])
    if draw.random() < 0.15:
        body["repetition_penalty"] = 1.1
    bias = {tokens.end: -100.0} if long else {}
    if draw.random() < 0.15:
        bias[draw.randrange(2, tokens.size)] = draw.choice([-5.0, 3.0])
    if draw.random() < 0.2:
        body["n"] = draw.randint(2, 3)
    what = "chat" if draw.random() < 0.35 else "completion"
    if not long and draw.random() < 0.3:
        body["stop"] = draw.choice(["e", ["on", "\n"], [" ", "😀"]])
        if draw.random() < 0.5:
            body["stop_token_ids"] = draw.sample(range(2, tokens.size), 20)
    if what == "chat":
        if draw.random() < 0.5:
            bias[tokens.thought] = draw.choice([2.0, 4.0])
        _chat(body, draw, thinking=tokens.thought in bias)
        what += " with tools" if "tools" in body else ""
    elif draw.random() < 0.25:
        body["prompt"] = draw.sample(TEXTS, draw.randint(2, 3))
        if draw.random() < 0.5:
            body["prompt"] = [_ids(tokens, draw) for _ in range(draw.randint(2, 3))]
        what = "several prompts"
    else:
        text = draw.choice(TEXTS) * draw.randint(1, 12)
        body["prompt"] = text if draw.random() < 0.5 else _ids(tokens, draw)
    if "prompt" in body and draw.random() < 0.4:
        body["logprobs"] = draw.randint(0, 5)
        body["echo"] = not body["stream"] and draw.random() < 0.5
        if draw.random() < 0.3:
            body["logprobs_mode"] = "processed_logprobs"
    if bias:
        body["logit_bias"] = {str(token): value for token, value in bias.items()}
    kind = f"{what}, {'streamed' if body['stream'] else 'whole'}"
    route = "completions" if "prompt" in body else "chat/completions"
    return Asked(number, route, body, leaves, kind)


def _chat(body: dict[str, Any], draw: random.Random, *, thinking: bool) -> None:
    """A conversation, with or without tools, whose answer begins with thinking or does not."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": draw.choice(TEXTS)}]
    if draw.random() < 0.4:
        body["tools"] = [TOOL]
        call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        messages += [call, {"role": "tool", "tool_call_id": "1", "content": "4"}]
    if thinking:
        messages.append({"role": "user", "content": f"{THINK} of {draw.randrange(100)}."})
    body["messages"] = messages
    if draw.random() < 0.4:
        body |= {"logprobs": True, "top_logprobs": draw.randint(0, 5)}


def _ids(tokens: Vocabulary, draw: random.Random) -> list[int]:
    """Ids, half of the time behind a beginning that others have too."""
    shared = [5 + (place * 7) % 200 for place in range(draw.randint(1, 400))]
    own = [draw.randrange(5, tokens.size) for _ in range(draw.randint(1, 20))]
    return shared + own if draw.random() < 0.5 else own


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
        (body(prompt=[1, "x"]), (400,)),
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
        (body(stop_token_ids=[vocabulary]), (400,)),
        (body(logit_bias={"5": 1, "05": 1}), (400,)),
        (body(prompt="x" * (2**20 + 64 * positions)), (413,)),
    ]
