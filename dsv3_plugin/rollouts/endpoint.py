"""A server that speaks OpenAI's language (vLLM, SGLang, `dsv3 serve`, a vendor's), asked."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.requests import FinishReason, SamplingParameters
from dsv3_plugin.inference.routed_experts import Experts, decoded, decoded_flat
from dsv3_plugin.rollouts.pushing import push
from dsv3_plugin.web import Patience, Refused, Unanswered, Web

LONG = Patience(attempt=3600.0, outage=600.0)
"""With a server that makes long answers, and may be started again meanwhile."""

Update = Literal["weights", "sglang", "buckets"]
"""How a server is told to take weights from a folder: as `dsv3 serve` is, or as SGLang; or `dsv3
serve` is sent them in pieces."""
_UPDATES: Mapping[Update, tuple[str, str]] = {
    "weights": ("/v1/weights", "path"),
    "sglang": ("/update_weights_from_disk", "model_path"),
}

_REASONS: Mapping[Any, FinishReason] = {"stop": "stop", "length": "length"}
_VERSION = "/v1"
_MOST_BYTES = 2**30
"""Of an answer: 32 texts of 32K tokens, each of which takes some 100 for its reports, and 620 where
DeepSeek-V3's experts are told."""


@dataclass(frozen=True)
class Choice:
    """One of the answers in a reply.

    Attributes:
        text: of it; in a chat what the server takes for thoughts aside.
        thoughts: those; empty where it tells none apart.
        finish_reason: why it ended; what a server calls otherwise than a stop or the length is
            "cancelled".
        prompt: token ids as the server has them; None where it does not say.
        tokens: of the answer, likewise.
        log_probs: of these, likewise.
        versions: of the weights that each comes from, as the server counts them, likewise.
        experts: that tokens of prompt and answer went to, integers in the server's form, likewise.
    """

    text: str
    thoughts: str
    finish_reason: FinishReason
    prompt: tuple[int, ...] | None
    tokens: tuple[int, ...] | None
    log_probs: tuple[float, ...] | None
    versions: tuple[int, ...] | None
    experts: Experts | None = field(default=None, compare=False)


class Endpoint:
    """A model behind OpenAI's interface; use as a context, or call `close`.

    Args:
        address: of the server, with or without `/v1`.
        model: its name there; None: the only one that there is.
        key: what the server wants to know.
        patience: with it.
        at_once: requests at most.
        may_be_starting: whether it is waited for at first, too.
        bucket_bytes: of weights that it is sent at once, at most.

    Attributes:
        model: its name.

    Raises:
        UserError: nobody answers there, or not in OpenAI's language, or the model is not there.
    """

    def __init__(
        self,
        address: str,
        *,
        model: str | None = None,
        key: str | None = None,
        patience: Patience = LONG,
        at_once: int = 64,
        may_be_starting: bool = True,
        bucket_bytes: int = 10**9,
    ) -> None:
        self.address = address.rstrip("/").removesuffix(_VERSION)
        self._bucket_bytes = bucket_bytes
        self._web = Web(
            self.address, key=key, patience=patience, at_once=at_once, most_bytes=_MOST_BYTES
        )
        try:
            names = self._models(may_be_starting)
            if model is None and len(names) != 1:
                raise UserError(
                    f"{self.address} has {len(names)} models ({', '.join(names[:8])}): name one."
                )
            self.model = model or names[0]
        except BaseException:
            self._web.close()
            raise

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is under way."""
        self._web.close()

    @property
    def repeated(self) -> dict[str, int]:
        """How often requests failed and were made again, by the reason."""
        return dict(self._web.repeated)

    def complete(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingParameters,
        *,
        reported: bool,
        experts: bool = False,
    ) -> "Future[Any]":
        """Answers to a text or to token ids; `choices_of` reads what comes.

        Args:
            prompt: of it.
            sampling: how. Tokens that end a text are the server's to know.
            reported: with token ids and log-probabilities, of the distribution that tokens are
                drawn from: `dsv3 serve` is asked for these, SGLang tells them, and vLLM has to be
                started with `--logprobs-mode processed_logprobs`.
            experts: with the experts that tokens went to: `dsv3 serve` tells them, and SGLang where
                it was started with `--enable-return-routed-experts`.
        """
        body = {"model": self.model, "prompt": prompt, **_asked(sampling)}
        if reported:
            # vLLM and SGLang tell ids by this name, too; of log-probabilities the sampled token's.
            body |= {"logprobs": 1, "return_token_ids": True}
            if sampling.temperature != 1:
                body["logprobs_mode"] = "processed_logprobs"
        if experts:
            body["return_routed_experts"] = True
        return self._web.post(f"{_VERSION}/completions", body)

    def chat(
        self, conversation: Conversation, sampling: SamplingParameters, max_tokens: int | None
    ) -> "Future[Any]":
        """One answer to a conversation; `choices_of` reads what comes.

        Args:
            conversation: to answer.
            sampling: how.
            max_tokens: of the answer; None: what the server allows.
        """
        body = {"model": self.model, "messages": conversation.messages, **_asked(sampling)}
        del body["max_tokens"], body["n"]
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        if conversation.tools:
            body["tools"] = conversation.tools
        return self._web.post(f"{_VERSION}/chat/completions", body)

    def take_weights(self, folder: str, by: Update = "weights") -> int | None:
        """Have the server take other weights of its model; returns once it serves them.

        Args:
            folder: of Hugging Face's form (of `dsv3 serve` a checkpoint, too), as it is there; one
                here, where it is sent.
            by: how it is told.

        Returns:
            The server's number of them, where it has one.

        Raises:
            UserError: it does not take them.
        """
        try:
            if by == "buckets":
                said = push(self._post, Path(folder), self._bucket_bytes)
            else:
                path, key = _UPDATES[by]
                said = self._post(path, {key: folder})
        except Unanswered as error:
            raise UserError(
                f"{self.address} does not take the weights of {folder}: it {sentence_of(error)}."
            ) from None
        said = said if isinstance(said, dict) else {}
        if said.get("success") is False:
            raise UserError(
                f"{self.address} does not take the weights of {folder}: {said.get('message')}."
            )
        version = said.get("version")
        return version if type(version) is int else None

    def _post(self, path: str, body: Any) -> Any:
        return self._web.post(path, body).result()

    def _models(self, patient: bool) -> list[str]:
        """Names of the models that are served."""
        try:
            said = self._web.get(f"{_VERSION}/models", patient=patient).result()
            return [str(model["id"]) for model in said["data"]]
        except Unanswered as error:
            raise UserError(f"{self.address} {sentence_of(error)}.") from None
        except (TypeError, KeyError):
            raise UserError(f"{self.address} tells no models at {_VERSION}/models.") from None


def sentence_of(error: Unanswered) -> str:
    """What a server did, in words."""
    if isinstance(error, Refused):
        said = f": {error.said}" if error.said else ""
        return f"refuses (status {error.status}){said}".rstrip(".")
    return error.whole.rstrip(".")


def choices_of(reply: Any, n: int) -> list[Choice]:
    """The answers in a reply, in their order.

    Raises:
        Unanswered: they are not there, or are others than were asked for.
    """
    try:
        choices = [_choice(one) for one in sorted(reply["choices"], key=lambda one: one["index"])]
    except (TypeError, KeyError, ValueError, AttributeError):
        raise Unanswered("answered otherwise than OpenAI's interface has it") from None
    if len(choices) != n:
        raise Unanswered("answered another number of choices")
    return choices


def _choice(told: Mapping[str, Any]) -> Choice:
    message = told.get("message") or {"content": told.get("text")}
    content, thoughts = message.get("content"), message.get("reasoning_content")
    if thoughts is None:  # as newer servers call it
        thoughts = message.get("reasoning")
    tokens = told.get("token_ids")
    return Choice(
        text=content or "",
        thoughts=thoughts or "",
        finish_reason=_REASONS.get(told["finish_reason"], "cancelled"),
        prompt=_ids(told.get("prompt_token_ids")),
        tokens=_ids(tokens),
        log_probs=_log_probs(told.get("logprobs")),
        versions=_ids(told.get("weights_versions")),
        experts=_experts(told),
    )


def _experts(told: Mapping[str, Any]) -> Experts | None:
    """As `dsv3 serve` tells them, or as SGLang does."""
    if (text := told.get("routed_experts")) is not None:
        return decoded(text)
    flat = (told.get("sgl_ext") or {}).get("routed_experts")
    return None if flat is None else decoded_flat(flat)


def _ids(told: Any) -> tuple[int, ...] | None:
    return None if told is None else tuple(int(token) for token in told)


def _log_probs(told: Any) -> tuple[float, ...] | None:
    if not told or told.get("token_logprobs") is None:
        return None
    return tuple(float(value) for value in told["token_logprobs"])


def _asked(sampling: SamplingParameters) -> dict[str, Any]:
    """A body's fields; those that are not OpenAI's only where they say something."""
    return dict(_fields(sampling))


def _fields(sampling: SamplingParameters) -> Iterator[tuple[str, Any]]:
    yield "max_tokens", sampling.max_tokens
    yield "temperature", sampling.temperature
    yield "top_p", sampling.top_p
    yield "n", sampling.n
    yield "seed", sampling.seed
    if sampling.stop:
        yield "stop", list(sampling.stop)
    if sampling.top_k is not None:
        yield "top_k", sampling.top_k
    if sampling.min_p:
        yield "min_p", sampling.min_p
    if sampling.repetition_penalty != 1.0:
        yield "repetition_penalty", sampling.repetition_penalty
    if sampling.logit_bias:
        yield "logit_bias", {str(token): value for token, value in sampling.logit_bias.items()}
