"""What is asked over HTTP, checked: OpenAI's completions and chat completions.

What is not among the fields is refused with its name, and so is what a field may say elsewhere and
the engine does not do: nothing is ignored silently. A field that is null is one that is not there,
as OpenAI's interface has it.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from dsv3_plugin.data.chat.conversation import ROLES
from dsv3_plugin.inference.requests import LARGEST_SEED, SamplingParameters, WrongField

MOST_TOP_LOG_PROBS = 20
"""As OpenAI's chat completions allow."""


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


class StreamOptions(_Section):
    """What a stream tells beside the text."""

    include_usage: bool = False


class _Common(_Section):
    """What both kinds of requests have."""

    model: str
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    n: int = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    """Tokens that end an answer beside the tokenizer's own, as vLLM calls it."""
    logit_bias: dict[str, float] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Who asks, for whoever runs the server; nothing depends on it."""
    presence_penalty: Literal[0, 0.0] | None = None
    frequency_penalty: Literal[0, 0.0] | None = None
    return_token_ids: bool = False
    """Reply with token ids beside the text."""
    return_routed_experts: bool = False
    """And with the experts that tokens went to, as SGLang calls it."""

    def _sampling(self, **more: Any) -> SamplingParameters:
        if self.stream_options is not None and not self.stream:
            raise WrongField("stream_options goes with stream: true.", "stream_options")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParameters(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            n=self.n,
            seed=secrets.randbelow(LARGEST_SEED) if self.seed is None else self.seed,
            stop=tuple(stop),
            stop_tokens=frozenset(self.stop_token_ids or ()),
            logit_bias=_by_id(self.logit_bias or {}),
            **more,
        )


class CompletionRequest(_Common):
    """A body of /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOG_PROBS)] | None = None
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs"] = "raw_logprobs"
    """Log-probabilities of the answer's tokens: the model's own, or those of the distributions that
    they were drawn from, of a greedy one 0 (vLLM's words, and there an argument of the server)."""
    echo: bool = False
    best_of: int | None = None

    def sampling(self) -> SamplingParameters:
        """How tokens are chosen.

        Raises:
            WrongField: in a way that cannot be.
        """
        if self.best_of not in (None, self.n):
            sentence = "best_of chooses among more answers than n: leave it out."
            raise WrongField(sentence, "best_of")
        if self.echo and self.stream:
            sentence = (
                "echo repeats the prompt before the answer, which is not streamed: leave it out."
            )
            raise WrongField(sentence, "echo")
        return self._sampling(
            max_tokens=self.max_tokens,
            top_log_probs=self.logprobs or 0,
            prompt_log_probs=self.echo and self.logprobs is not None,
        )

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or more."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


def _message(sent: Any) -> Any:
    """A turn as templates know it: who speaks, and what as a text, which may be sent in parts."""
    if not isinstance(sent, dict) or not isinstance(sent.get("role"), str):
        raise ValueError("each message is an object with a role")
    if (role := sent["role"]) not in ROLES:
        raise ValueError(f"the role {role[:40]!r} is not known: take one of {', '.join(ROLES)}")
    if sent.get("content") is None and not (role == "assistant" and sent.get("tool_calls")):
        raise ValueError(f"this turn of {role} has no content")
    parts = sent.get("content")
    if not isinstance(parts, list):
        if not isinstance(parts, str | None):
            raise ValueError("content is a text, or a list of parts")
        return sent
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"of content only parts of type text are supported, not {kind!r}")
    return sent | {"content": "".join(part["text"] for part in parts)}


Message = Annotated[dict[str, Any], pydantic.BeforeValidator(_message)]


class ChatRequest(_Common):
    """A body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOG_PROBS)] | None = None

    def sampling(self, room: int) -> SamplingParameters:
        """How tokens are chosen.

        Args:
            room: tokens that fit behind the prompt, which is what an answer may have where the
                request does not say.

        Raises:
            WrongField: in a way that cannot be.
        """
        if self.top_logprobs and not self.logprobs:
            raise WrongField("top_logprobs goes with logprobs: true.", "top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            sentence = "max_tokens and max_completion_tokens say the same: leave one out."
            raise WrongField(sentence, "max_tokens")
        wanted = self.max_completion_tokens or self.max_tokens or max(room, 1)
        return self._sampling(max_tokens=wanted, top_log_probs=self.top_logprobs or 0)


class WeightsRequest(_Section):
    """A body of /v1/weights."""

    path: str
    """Of a checkpoint or a Hugging Face folder, from the root that weights are taken from."""


class WeightsBegin(_Section):
    """A body of /v1/weights/begin."""

    config: dict[str, Any]
    """`config.json` of the model that weights are to come of."""


class WeightsFinish(_Section):
    """A body of /v1/weights/UPDATE/finish, which says nothing."""


def _by_id(bias: Mapping[str, float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for token, value in bias.items():
        if not re.fullmatch("-?[0-9]{1,18}", token):
            raise WrongField(f"logit_bias has the key {token[:40]!r}, no token id.", "logit_bias")
        if int(token) in found:
            sentence = f"logit_bias names token {int(token)} twice: leave one out."
            raise WrongField(sentence, "logit_bias")
        found[int(token)] = value
    return found
