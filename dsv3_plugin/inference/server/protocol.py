"""What is asked over HTTP, checked: OpenAI's completions and chat completions.

What is not among the fields is refused with its name, and so is what a field may say elsewhere and
the engine does not do: nothing is ignored silently.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.requests import SamplingParameters

MOST_TOP_LOG_PROBS = 20
"""As OpenAI's chat completions allow."""


class _Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


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
    seed: int = 0
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Who asks, for whoever runs the server; nothing depends on it."""
    presence_penalty: Literal[0, 0.0] | None = None
    frequency_penalty: Literal[0, 0.0] | None = None
    return_token_ids: bool = False
    """Reply with token ids beside the text."""

    tokens_wanted: ClassVar[int] = 16

    def _sampling(self, **more: Any) -> SamplingParameters:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return SamplingParameters(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            n=self.n,
            seed=self.seed,
            stop=tuple(stop),
            logit_bias=_by_id(self.logit_bias or {}),
            **more,
        )


class CompletionRequest(_Common):
    """A body of /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOG_PROBS)] | None = None
    echo: bool = False
    best_of: int | None = None

    def sampling(self) -> SamplingParameters:
        """How tokens are chosen.

        Raises:
            UserError: in a way that cannot be.
        """
        if self.best_of not in (None, self.n):
            raise UserError("best_of chooses among more answers than n: leave it out.")
        if self.echo and self.stream:
            raise UserError("echo repeats the prompt before the answer, which is not streamed.")
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


class ChatRequest(_Common):
    """A body of /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
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
            UserError: in a way that cannot be.
        """
        if self.top_logprobs and not self.logprobs:
            raise UserError("top_logprobs goes with logprobs: true.")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise UserError("max_tokens and max_completion_tokens say the same: leave one out.")
        wanted = self.max_completion_tokens or self.max_tokens or max(room, 1)
        return self._sampling(max_tokens=wanted, top_log_probs=self.top_logprobs or 0)


def read[Body: _Section](body: type[Body], data: Any) -> Body:
    """A body as it was sent, checked.

    Raises:
        UserError: it is none, with the first thing that is wrong.
    """
    try:
        return body.model_validate(data)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UserError(f"{place} is not supported: leave it out.") from None
        if place in ("presence_penalty", "frequency_penalty"):
            raise UserError(f"{place} is not supported: take repetition_penalty.") from None
        what = place or "the body"
        raise UserError(f"{what}: {first['msg'][0].lower()}{first['msg'][1:]}.") from None


def _by_id(bias: Mapping[str, float]) -> dict[int, float]:
    try:
        return {int(token): value for token, value in bias.items()}
    except ValueError:
        raise UserError("logit_bias has a key that is no token id.") from None
