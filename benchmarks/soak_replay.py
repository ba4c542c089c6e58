"""Answers of `soak.py` made again, each by an engine that does nothing else, and compared."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from soak_got import Got, GotChoice
from soak_requests import LONG, Asked
from soak_server import THINK
from soak_ties import NEAR, as_good, first_other_experts, has_tied_experts, tokens_as_good

from dsv3_plugin.distributed.world import single_process


@dataclass
class Compared:
    """What came of comparisons.

    Attributes:
        faults: in sentences.
        counts: of what was compared.
        apart: the largest difference of two log-probabilities: of the model's own, and of the
            distributions that tokens were drawn from, times the temperature that divides logits.
    """

    faults: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    apart: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("own", "drawn"), 0.0))

    def add(self, other: "Compared") -> None:
        """Those of another process."""
        self.faults += other.faults
        self.apart = {what: max(value, other.apart[what]) for what, value in self.apart.items()}
        for name, value in other.counts.items():
            self.counts[name] += value


COUNTS = (
    "answers", "tokens", "answers of more than 200 tokens", "drawn", "over two versions of weights",
    "log-probabilities", "echoed", "ended by a string or token", "with thinking", "with tools",
    "of several prompts", "streamed",
    "another token as good", "other experts as good",
)  # fmt: skip


def replay(work: tuple[Sequence[Path], list[tuple[Asked, Got]]]) -> Compared:
    """Make answers again and compare them.

    Args:
        work: checkpoints, of which those of version v are number v modulo how many there are; the
            answers.
    """
    from dsv3_plugin.checkpoint.load import load_for_inference
    from dsv3_plugin.inference.checkpoint_tokenizer import tokenizer_of_checkpoint
    from dsv3_plugin.inference.server.words import words_of

    checkpoints, answers = work
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    compared = Compared()
    with single_process():
        models = [load_for_inference(checkpoint)[0] for checkpoint in checkpoints]
        changing = load_for_inference(checkpoints[0])[0]
        tokenizer = tokenizer_of_checkpoint(checkpoints[0])
        alone = Alone(models, changing, tokenizer.decode, words_of(tokenizer))
        for asked, got in answers:
            alone.compare(asked, got, compared)
    return compared


class Alone:
    """Makes answers again.

    Args:
        models: with the weights of each version, modulo how many there are.
        changing: another one, which has them by turns.
        text_of: text of token ids.
        words: a tokenizer as the server uses it.
    """

    def __init__(self, models: list[Any], changing: Any, text_of: Any, words: Any) -> None:
        self._models, self._changing = models, changing
        self._text_of, self._words = text_of, words

    def compare(self, asked: Asked, got: Got, into: Compared) -> None:
        """All answers to a request with those made again."""
        prompts = [self._ids(asked, prompt) for prompt in asked.prompts]
        n = asked.body.get("n", 1)
        before = len(into.faults)
        near = into.counts["another token as good"] + into.counts["other experts as good"]
        if sorted(got.choices) != list(range(n * len(prompts))):
            into.faults.append(f"request {asked.number}: choices {sorted(got.choices)}")
            return
        for number, prompt in enumerate(prompts):
            choices = [got.choices[number * n + answer] for answer in range(n)]
            for answer, (choice, made) in enumerate(
                zip(choices, self._made(asked, number, prompt, choices), strict=True)
            ):
                where = f"request {asked.number} ({asked.kind}), answer {number}.{answer}"
                self._compare(asked, number, choice, made, where, into)
        since = into.counts["another token as good"] + into.counts["other experts as good"]
        if len(into.faults) == before and since == near:
            written = sum(len(choice.tokens) for choice in got.choices.values())
            read = sum(map(len, prompts))
            wanted = dict(zip(USAGE, (read, written, read + written), strict=True))
            if got.usage != wanted:
                into.faults.append(f"request {asked.number}: usage {got.usage}, not {wanted}")

    def _ids(self, asked: Asked, prompt: Any) -> list[int]:
        from dsv3_plugin.data.chat.conversation import Conversation

        if "messages" in asked.body:
            text = self._words.prompt(Conversation(prompt, asked.body.get("tools")))
            return self._words.encode(text, False)
        return self._words.encode(prompt, True) if isinstance(prompt, str) else prompt

    def _made(
        self, asked: Asked, number: int, prompt: list[int], choices: list[GotChoice]
    ) -> list[Any]:
        """Answers to one of a request's prompts, under the weights that the served ones are of."""
        from dsv3_plugin.inference.engine import Engine, EngineSettings
        from dsv3_plugin.inference.requests import Request

        request = Request(tuple(prompt), self._sampling(asked), number=number)
        weights = {self._of(version) for choice in choices for version in choice.versions}
        if len(weights) == 1:
            model = self._models[weights.pop()]
            engine = Engine(
                model, EngineSettings(2**25, record_experts=True), text_of=self._text_of
            )
            return engine.run([request])
        return [self._over_versions(request, place, one) for place, one in enumerate(choices)]

    def _of(self, version: int) -> int:
        return version % len(self._models)

    def _over_versions(self, request: Any, place: int, choice: GotChoice) -> Any:
        """One of the answers, with the weights changed before the same tokens as at the server."""
        from dsv3_plugin.inference.engine import Engine, EngineSettings

        engine = Engine(
            self._changing, EngineSettings(2**25, record_experts=True), text_of=self._text_of
        )
        engine.add(request)
        made, there, has = None, 0, None
        while made is None:
            wanted = self._of(choice.versions[min(there, len(choice.versions) - 1)])
            if wanted != has:
                self._changing.load_state_dict(self._models[wanted].state_dict())
                engine.weights_changed()
                has = wanted
            for progress in engine.step():
                if progress.number == place:
                    there += len(progress.reports)
                    made = progress.completion
        return made

    def _sampling(self, asked: Asked) -> Any:
        """What the engine is asked by a request."""
        from dsv3_plugin.inference.requests import SamplingParameters

        body = asked.body
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n", "seed")
        said = {name: body[name] for name in names if name in body}
        stop = body.get("stop", [])
        tops = body.get("top_logprobs", 0) if "messages" in body else body.get("logprobs", 0)
        return SamplingParameters(
            max_tokens=body["max_tokens"],
            logit_bias={int(token): value for token, value in body.get("logit_bias", {}).items()},
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_tokens=self._ends(asked),
            top_log_probs=tops,
            prompt_log_probs=bool(body.get("echo")) and "logprobs" in body,
            **said,
        )

    def _ends(self, asked: Asked) -> frozenset[int]:
        return self._words.ends | frozenset(asked.body.get("stop_token_ids", ()))

    def _compare(
        self, asked: Asked, number: int, choice: GotChoice, made: Any, where: str, into: Compared
    ) -> None:
        counts = into.counts
        counts["answers"] += 1
        counts["tokens"] += len(choice.tokens)
        counts["answers of more than 200 tokens"] += len(choice.tokens) > LONG
        counts["with tools"] += "tools" in asked.body
        counts["of several prompts"] += len(asked.prompts) > 1
        counts["streamed"] += asked.streams
        counts["drawn"] += asked.body["temperature"] > 0
        counts["over two versions of weights"] += len({*choice.versions}) > 1
        if choice.prompt is not None and choice.prompt != list(made.prompt):
            into.faults.append(f"{where}: another prompt")
        if len(choice.versions) != len(choice.tokens) or choice.versions != sorted(choice.versions):
            into.faults.append(f"{where}: versions {choice.versions}")
        tied = self._other_experts(choice, made, where, into)
        if choice.tokens != made.tokens:
            self._compare_places(asked, number, choice, made, tied, where, into)
            return
        reason = "stop" if made.finish_reason == "stop" else "length"
        counts["ended by a string or token"] += reason == "stop"
        if choice.reason != reason:
            into.faults.append(f"{where}: ended by {choice.reason}, not {reason}")
        for what, got, wanted in zip(
            ("thinking", "text"),
            (choice.thought, choice.text),
            self._texts(asked, made),
            strict=True,
        ):
            if got != wanted:
                into.faults.append(f"{where}: the {what} is {got!r}, not {wanted!r}")
        counts["with thinking"] += bool(choice.thought)
        counts["echoed"] += bool(asked.body.get("echo"))
        self._compare_log_probs(asked, choice, made, tied, where, into)

    def _texts(self, asked: Asked, made: Any) -> tuple[str, str]:
        """Thinking and text of an answer."""
        ends, stop = self._ends(asked), asked.body.get("stop", [])
        text = self._words.said([token for token in made.tokens if token not in ends])
        places = [text.find(one) for one in ([stop] if isinstance(stop, str) else stop)]
        found = [place for place in places if place >= 0]
        text = text[: min(found)] if found else text
        if "messages" not in asked.body:
            before = self._words.decode(made.prompt) if asked.body.get("echo") else ""
            return "", before + text
        opened = THINK in (asked.body["messages"][-1]["content"] or "")
        if not opened and text.lstrip().startswith("<think>"):
            opened, text = True, text.lstrip().removeprefix("<think>")
        if not opened:
            return "", text
        thought, _, said = text.partition("</think>")
        return thought, said.lstrip("\n")

    def _other_experts(self, choice: GotChoice, made: Any, where: str, into: Compared) -> float:
        """The first token that went to other experts which are as good, behind which everything may
        be otherwise; infinite where there is none."""
        ours, theirs = choice.experts, made.experts.numpy()
        text = [*made.prompt, *made.tokens]
        if ours is None or len(ours) != len(made.prompt) + len(choice.tokens) - 1:
            into.faults.append(f"{where}: experts of {None if ours is None else len(ours)} tokens")
            return math.inf
        first = first_other_experts(ours, theirs)
        if first is None:
            return math.inf
        token, layer = first
        shared = zip(text, [*made.prompt, *choice.tokens], strict=False)
        if any(one != other for one, other in list(shared)[: token + 1]):
            return math.inf  # of another text
        model = self._models[self._of(choice.versions[-1])]
        both = [ours[token, layer], theirs[token, layer]]
        if not as_good(model, text[: token + 1], layer, both):
            into.faults.append(f"{where}: token {token} went to other experts in layer {layer}")
        into.counts["other experts as good"] += 1
        return token

    def _compare_places(
        self,
        asked: Asked,
        number: int,
        choice: GotChoice,
        made: Any,
        tied: float,
        where: str,
        into: Compared,
    ) -> None:
        """Look whether the two tokens are as good where answers part, or all behind a tie."""
        pairs = zip(made.tokens, choice.tokens, strict=False)
        place = next((p for p, (one, two) in enumerate(pairs) if one != two), None)
        if place is None:
            into.faults.append(f"{where}: ended after {len(choice.tokens)} tokens")
            return
        if tied < len(made.prompt) + place:
            return
        sampling = self._sampling(asked)
        model = self._models[self._of(choice.versions[place])]
        text = [*made.prompt, *made.tokens[:place]]
        two = [choice.tokens[place], made.tokens[place]]
        key = (sampling.seed, number, made.number, place)
        if tokens_as_good(model, text, two, sampling, key):
            into.counts["another token as good"] += 1
        elif len({*choice.versions}) > 1 and has_tied_experts(model, text):
            # Its experts were computed again when the weights changed: those before are not known.
            into.counts["other experts as good"] += 1
        else:
            into.faults.append(
                f"{where}: token {place} is {two[0]}, not {two[1]}, "
                f"of versions {sorted({*choice.versions[: place + 1]})}"
            )

    def _compare_log_probs(
        self, asked: Asked, choice: GotChoice, made: Any, tied: float, where: str, into: Compared
    ) -> None:
        told = asked.body.get("logprobs", False)
        if told is False:
            if choice.values:
                into.faults.append(f"{where}: log-probabilities that nobody asked for")
            return
        processed = asked.body.get("logprobs_mode") == "processed_logprobs"
        reports = [*(made.prompt_reports or ()), *made.reports]
        names = [self._words.spelling.name(report.token) for report in reports]
        values: list[float | None] = [
            report.sampling_log_prob
            if processed and report.sampling_log_prob is not None
            else report.log_prob
            for report in reports
        ]
        tops: list[Any] = [
            {self._words.spelling.name(token): value for token, value in report.top}
            for report in reports
        ]
        if asked.body.get("echo"):
            first = self._words.spelling.name(made.prompt[0])
            names, values, tops = [first, *names], [None, *values], [None, *tops]
        if choice.names != names:
            into.faults.append(f"{where}: log-probabilities of other tokens")
            return
        if tied < math.inf:  # of what comes behind that token
            begin = 0 if asked.body.get("echo") else len(made.prompt)
            known = max(0, int(tied) + 1 - begin)
            values, tops = values[:known], tops[:known]
        into.counts["log-probabilities"] += len(values)
        pairs = list(zip(choice.values, values, strict=False))
        for got, wanted in zip(choice.tops, tops, strict=False):
            best = (sorted((one or {}).values()) for one in (got, wanted))
            pairs += zip(*best, strict=True)
            pairs += [(got[name], wanted[name]) for name in {*(got or ())} & {*(wanted or ())}]
        if any((got is None) != (wanted is None) for got, wanted in pairs):
            into.faults.append(f"{where}: a log-probability that there is not, or is")
            return
        apart = max((abs(got - wanted) for got, wanted in pairs if got is not None), default=0.0)
        if processed:
            apart *= min(1.0, asked.body["temperature"] or 1.0)
        what = "drawn" if processed else "own"
        into.apart[what] = max(into.apart[what], apart)
        if apart > NEAR:
            into.faults.append(f"{where}: log-probabilities differ by {apart:.2e}")


USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")
