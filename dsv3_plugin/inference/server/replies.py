"""Answers in the shapes of OpenAI's replies, whole and in pieces."""

import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from dsv3_plugin.inference.requests import Completion, TokenReport
from dsv3_plugin.inference.routed_experts import coded
from dsv3_plugin.inference.server.spelling import Spelling
from dsv3_plugin.inference.server.thinking import Thinking
from dsv3_plugin.inference.text import TextStream

Kind = Literal["text_completion", "chat.completion"]
Json = dict[str, Any]


@dataclass
class Choice:
    """One answer as it grows.

    Attributes:
        index: among all of the request's.
        prompt: token ids.
        stream: its text.
        thinking: that apart; None where there is none to tell.
        reports: of its tokens.
        text, thought: so far.
        told: characters of tokens whose log-probabilities were streamed.
        completion: once it ended.
    """

    index: int
    prompt: Sequence[int]
    stream: TextStream
    thinking: Thinking | None = None
    reports: list[TokenReport] = field(default_factory=list)
    text: str = ""
    thought: str = ""
    told: int = 0
    completion: Completion | None = None

    def add(self, reports: Sequence[TokenReport], completion: Completion | None) -> tuple[str, str]:
        """What tokens add to the thinking and to the text."""
        self.reports += reports
        self.completion = completion
        piece = self.stream.add([report.token for report in reports])
        if completion is not None:
            piece += self.stream.end()
        thought, said = ("", piece) if self.thinking is None else self.thinking.add(piece)
        if completion is not None and self.thinking is not None:
            last_thought, last_said = self.thinking.end()
            thought, said = thought + last_thought, said + last_said
        self.thought += thought
        self.text += said
        return thought, said

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, in OpenAI's words."""
        if self.completion is None:
            return None
        return "stop" if self.completion.finish_reason == "stop" else "length"


@dataclass(frozen=True)
class Replies:
    """The replies to one request.

    Attributes:
        kind: of completion.
        model: its name.
        spelling: of single tokens.
        log_probs: report them.
        processed: of the distributions that tokens were drawn from, where there are.
        echo: text of a prompt, where it comes before the answer.
        token_ids: report them.
        experts: report where tokens went.
    """

    kind: Kind
    model: str
    spelling: Spelling
    log_probs: bool = False
    processed: bool = False
    echo: Callable[[Sequence[int]], str] | None = None
    token_ids: bool = False
    experts: bool = False
    _id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _created: int = field(default_factory=lambda: int(time.time()))

    @property
    def _chat(self) -> bool:
        return self.kind == "chat.completion"

    def whole(self, choices: Sequence[Choice]) -> Json:
        """The reply to a request that does not stream."""
        reports = [choice.reports[-1] for choice in choices if choice.reports]
        told = self._reply(self.kind, [self._choice(choice) for choice in choices], reports)
        return told | {"usage": usage(choices)}

    def first_piece(self, choice: Choice) -> Json:
        """What a chat's stream begins with."""
        return self._piece(choice, {"delta": {"role": "assistant", "content": ""}}, None, [])

    def piece(
        self, choice: Choice, thought: str, said: str, reports: Sequence[TokenReport]
    ) -> Json:
        """What a step added."""
        if not self._chat:
            return self._piece(choice, {"text": said}, choice.finish_reason, reports)
        delta = {"reasoning_content": thought} if thought else {}
        delta |= {"content": said} if said else {}
        return self._piece(choice, {"delta": delta}, choice.finish_reason, reports)

    def last_piece(self, choices: Sequence[Choice]) -> Json:
        """The stream's end, for those who asked for the usage."""
        return self._reply(self._object_of_pieces, [], []) | {"usage": usage(choices)}

    @property
    def _object_of_pieces(self) -> str:
        return "chat.completion.chunk" if self._chat else self.kind

    def _reply(self, kind: str, choices: list[Json], last: Sequence[TokenReport]) -> Json:
        """What all replies are.

        Args:
            last: tokens, the newest of whose weights are told of.
        """
        name = f"{'chatcmpl' if self._chat else 'cmpl'}-{self._id}"
        created = {"id": name, "object": kind, "created": self._created, "model": self.model}
        if last:
            created["system_fingerprint"] = f"weights-{max(one.version for one in last)}"
        return created | {"choices": choices}

    def _piece(
        self, choice: Choice, said: Json, reason: str | None, reports: Sequence[TokenReport]
    ) -> Json:
        told: Json = {"index": choice.index, **said, "finish_reason": reason, "logprobs": None}
        if self.log_probs and reports:
            told["logprobs"] = self._log_probs(reports, choice.told)
            choice.told += sum(self.spelling.characters(report.token) for report in reports)
        if self.token_ids:
            told["token_ids"] = [report.token for report in reports]
            told["weights_versions"] = [report.version for report in reports]
        return self._reply(self._object_of_pieces, [told | self._experts(choice)], reports[-1:])

    def _choice(self, choice: Choice) -> Json:
        told: Json = {"index": choice.index, "finish_reason": choice.finish_reason}
        if self._chat:
            message: Json = {"role": "assistant", "content": choice.text}
            if choice.thought:
                message["reasoning_content"] = choice.thought
            told["message"] = message
        else:
            told["text"] = choice.text
        reports, before = list(choice.reports), None
        if self.echo is not None:
            told["text"] = self.echo(choice.prompt) + choice.text
            before = choice.prompt[0]
            reports = [*(choice.completion.prompt_reports or ()), *reports]
        told["logprobs"] = self._log_probs(reports, 0, before) if self.log_probs else None
        if self.token_ids:
            told["prompt_token_ids"] = list(choice.prompt)
            told["token_ids"] = [report.token for report in choice.reports]
            told["weights_versions"] = [report.version for report in choice.reports]
        return told | self._experts(choice)

    def _experts(self, choice: Choice) -> Json:
        """Where the tokens of prompt and answer went, once it ended; the last one aside, which the
        model never saw."""
        done = choice.completion
        if not self.experts or done is None:
            return {}
        return {"routed_experts": None if done.experts is None else coded(done.experts)}

    def _log_probs(
        self, reports: Sequence[TokenReport], begin: int, before: int | None = None
    ) -> Json:
        """What is known of tokens.

        Args:
            begin: characters of the text that come before them.
            before: a token that they follow, of which nothing was expected.
        """
        if self._chat:
            return {"content": [self._of_chat(report) for report in reports]}
        tokens = [report.token for report in reports]
        values: list[float | None] = [self._value(report) for report in reports]
        tops: list[Json | None] = [
            {self.spelling.name(token): _told(value) for token, value in report.top}
            for report in reports
        ]
        if before is not None:
            tokens, values, tops = [before, *tokens], [None, *values], [None, *tops]
        return {
            "tokens": [self.spelling.name(token) for token in tokens],
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": self._offsets(tokens, begin),
        }

    def _value(self, report: TokenReport) -> float | None:
        drawn = report.sampling_log_prob
        return _told(drawn if self.processed and drawn is not None else report.log_prob)

    def _offsets(self, tokens: Sequence[int], begin: int) -> list[int]:
        """Where in the text tokens begin; one that goes on with a character, where the next one
        does."""
        ends = accumulate(map(self.spelling.characters, tokens), initial=begin)
        return list(ends)[:-1]

    def _of_chat(self, report: TokenReport) -> Json:
        told = self._named(report.token, report.log_prob)
        return told | {"top_logprobs": [self._named(token, value) for token, value in report.top]}

    def _named(self, token: int, value: float) -> Json:
        coded = list(self.spelling.bytes(token))
        return {"token": self.spelling.name(token), "logprob": _told(value), "bytes": coded}


def _told(value: float) -> float | None:
    """A number as JSON has it; it has none for what a broken model makes of a token."""
    return value if math.isfinite(value) else None


def usage(choices: Sequence[Choice]) -> Json:
    """Tokens that were read and written; a prompt with several answers was read once."""
    prompts = {id(choice.prompt): len(choice.prompt) for choice in choices}
    read, written = sum(prompts.values()), sum(len(choice.reports) for choice in choices)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
