"""What an engine is asked, and what it answers: token ids in, token ids and what is known of them
out."""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dsv3_plugin.errors import UserError

FinishReason = Literal["stop", "length", "cancelled", "timeout"]
"""A stop token or string, as many tokens as allowed, the caller, the request's time."""

LARGEST_SEED = 2**63 - 1
MOST_ANSWERS = 1024
"""To one request: each is a sequence of its own, with pages of its own."""


class WrongField(UserError):
    """A request's field that cannot be answered, by its name."""

    def __init__(self, sentence: str, field: str | None = None) -> None:
        super().__init__(sentence)
        self.field = field


@dataclass(frozen=True)
class SamplingParameters:
    """How tokens are chosen, and when to stop.

    What is said of a distribution is done in this order: repetition penalty, logit bias,
    temperature, top-k, top-p, min-p.

    Attributes:
        max_tokens: tokens of an answer at most.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample from so many likeliest tokens; None: all.
        top_p: sample from the likeliest tokens whose probabilities sum to this (nucleus sampling,
            arXiv 1904.09751); the likeliest is always among them.
        min_p: sample from tokens at least this times as likely as the likeliest (arXiv 2407.01082).
        repetition_penalty: logits of tokens that were there, prompt included, are divided by it
            where positive and multiplied where negative (CTRL, arXiv 1909.05858, section 4.1).
        logit_bias: added to the logits of these tokens.
        stop: strings that end the text; they are not part of it.
        stop_tokens: tokens that end the text; they are not part of it.
        n: answers to the prompt, which is computed once.
        seed: of the sampling. Answer number i and token number t to prompt number p (see `Request`)
            draw from (seed, p, i, t), whatever else the engine does. None: one that nobody knows.
        top_log_probs: report so many likeliest tokens with each token.
        prompt_log_probs: report the log-probabilities of the prompt's tokens too.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    n: int = 1
    seed: int | None = None
    top_log_probs: int = 0
    prompt_log_probs: bool = False

    def __post_init__(self) -> None:
        biases = self.logit_bias.values()
        for name, holds, demand in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1, or None for all"),
            ("top_p", 0 <= self.top_p <= 1, "from 0 to 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0.01 <= self.repetition_penalty <= 100, "from 0.01 to 100"),
            ("logit_bias", all(-1e30 <= b <= 1e30 for b in biases), "of -1e30 to 1e30"),
            ("stop", all(self.stop), "of strings with at least a character"),
            ("n", 1 <= self.n <= MOST_ANSWERS, f"from 1 to {MOST_ANSWERS}"),
            ("seed", 0 <= (self.seed or 0) <= LARGEST_SEED, f"from 0 to {LARGEST_SEED}"),
            ("top_log_probs", self.top_log_probs >= 0, "0 or more"),
        ):  # fmt: skip
            if not holds:
                raise WrongField(f"{name} is {getattr(self, name)!r} and has to be {demand}.", name)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0.0

    @property
    def plain(self) -> bool:
        """Whether tokens are chosen by the model's own logits and the temperature alone."""
        return (
            self.top_k is None
            and self.top_p == 1.0
            and self.min_p == 0.0
            and self.repetition_penalty == 1.0
            and not self.logit_bias
        )


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Attributes:
        prompt: token ids, at least one.
        sampling: how.
        seconds: until it ends as it is; None: no limit.
        number: of the prompt among those that are asked with one seed, so that their draws differ.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParameters = SamplingParameters()
    seconds: float | None = None
    number: int = 0

    @property
    def seeded(self) -> "Request":
        """The same with a seed."""
        if self.sampling.seed is not None:
            return self
        seed = secrets.randbelow(LARGEST_SEED + 1)
        return replace(self, sampling=replace(self.sampling, seed=seed))

    def require_answerable(self, vocabulary: int, longest: int, *, spells: bool) -> None:
        """Look whether a model can answer.

        Args:
            vocabulary: tokens of the model.
            longest: its positions.
            spells: the text of tokens is known.

        Raises:
            WrongField: it cannot.
        """
        sampling = self.sampling
        if not self.prompt:
            raise WrongField("The prompt has no tokens; write at least a word.", "prompt")
        for tokens, field_ in (
            (self.prompt, "prompt"),
            (sampling.logit_bias, "logit_bias"),
            (sampling.stop_tokens, "stop_token_ids"),
        ):
            unknown = next((token for token in tokens if not 0 <= token < vocabulary), None)
            if unknown is not None:
                raise WrongField(
                    f"Token {unknown} is none of the model's, which are 0 to {vocabulary - 1}.",
                    field_,
                )
        if len(self.prompt) + sampling.max_tokens > longest:
            raise WrongField(
                f"{len(self.prompt)} tokens of prompt and {sampling.max_tokens} new ones exceed "
                f"the model's {longest} positions: shorten the prompt or ask for fewer.",
                "prompt" if len(self.prompt) >= longest else "max_tokens",
            )
        if sampling.stop and not spells:
            raise WrongField("Stop strings need a tokenizer, and this engine has none.", "stop")
        if sampling.top_log_probs > vocabulary:
            raise WrongField(
                f"top_log_probs is {sampling.top_log_probs}, and the model has {vocabulary} "
                "tokens.",
                "top_log_probs",
            )


@dataclass(frozen=True)
class TokenReport:
    """A token and what the model made of it.

    Attributes:
        token: its id.
        log_prob: natural logarithm of the probability that the model gave it: of its own logits,
            before temperature and anything else of the sampling.
        sampling_log_prob: the same of the distribution that it was drawn from; of a greedy token 0,
            of a token of the prompt None.
        top: likeliest tokens and their log-probabilities as `log_prob`, the likeliest first.
        version: of the weights.
    """

    token: int
    log_prob: float
    sampling_log_prob: float | None
    top: tuple[tuple[int, float], ...]
    version: int


@dataclass(frozen=True)
class Completion:
    """An answer, whole or cut short.

    Attributes:
        request: the number that `Engine.add` gave.
        number: of the answer, from 0 to n − 1.
        prompt: token ids.
        reports: of the tokens of the answer.
        prompt_reports: of the prompt's tokens but the first, if they were asked for.
        finish_reason: why it ended.
        experts: [positions, MoE layers, top-k], int32 on the CPU: the experts that the tokens of
            prompt and answer went to, the last token aside, which the model never saw; None unless
            the engine records them.
    """

    request: int
    number: int
    prompt: tuple[int, ...]
    reports: tuple[TokenReport, ...]
    prompt_reports: tuple[TokenReport, ...] | None
    finish_reason: FinishReason
    experts: Any = None

    @property
    def tokens(self) -> list[int]:
        """Token ids of the answer."""
        return [report.token for report in self.reports]

    @property
    def log_probs(self) -> list[float]:
        """Of the answer's tokens, as the model computed them before temperature."""
        return [report.log_prob for report in self.reports]

    @property
    def sampling_log_probs(self) -> list[float | None]:
        """Of the answer's tokens, in the distributions that they were drawn from."""
        return [report.sampling_log_prob for report in self.reports]

    @property
    def versions(self) -> list[int]:
        """Of the weights that each token of the answer comes from."""
        return [report.version for report in self.reports]


@dataclass(frozen=True)
class Progress:
    """What a step did for an answer.

    Attributes:
        request, number: which.
        reports: its new tokens.
        completion: all of it, once it ended.
    """

    request: int
    number: int
    reports: tuple[TokenReport, ...]
    completion: Completion | None


@dataclass(frozen=True)
class Orders:
    """What the first rank of a pipeline tells the others before a step.

    Attributes:
        asked: numbers and requests that were added.
        ended: answers that end as they are, by request and number, with the reason.
    """

    asked: tuple[tuple[int, Request], ...]
    ended: tuple[tuple[tuple[int, int], FinishReason], ...]
