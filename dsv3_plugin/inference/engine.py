"""Text from a model, many requests at a time.

    engine = Engine(model, EngineSettings(cache_bytes=2**30))
    number = engine.add(Request(prompt, SamplingParameters(max_tokens=100)))
    while engine.busy:
        for progress in engine.step():
            ...

or `engine.run(requests)` for all answers at once. What a step computes decides the scheduler, what
comes of it the sampling; here they meet the model. The model's parameters are read where they lie:
in RL the trainer's own.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.attention import HeadShape, Rotation
from dsv3_plugin.inference.batch import Batch, Span, batch_of
from dsv3_plugin.inference.cache import CacheShape, LatentCache
from dsv3_plugin.inference.forward import (
    Weights,
    hidden_states,
    logits,
    moe_layers_of,
    require_whole,
)
from dsv3_plugin.inference.pages import Pages
from dsv3_plugin.inference.requests import (
    Completion,
    FinishReason,
    Request,
    SamplingParameters,
    TokenReport,
)
from dsv3_plugin.inference.sampling import draw, gumbel_noise, shaped, top_log_probs
from dsv3_plugin.inference.scheduler import Part, Scheduler, Sequence

TextOf = Callable[[list[int]], str]


@dataclass(frozen=True)
class EngineSettings:
    """How much an engine does at once.

    Attributes:
        cache_bytes: memory of cached latents.
        tokens_in_step: a longer prompt is computed in several steps, between which others get
            tokens (Sarathi-Serve, arXiv 2403.02310, section 5, measures 512 and 2048).
        most_running: sequences at most (as vLLM's `max_num_seqs`).
        record_experts: report where tokens went.
    """

    cache_bytes: int
    tokens_in_step: int = 2048
    most_running: int = 256
    record_experts: bool = False


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


@dataclass
class Counters:
    """What an engine did since it was made.

    Attributes:
        steps: that computed something.
        computed: tokens that went through the model, those computed again included.
        drawn: tokens of answers.
        put_back: sequences that lost their latents for want of memory.
    """

    steps: int = 0
    computed: int = 0
    drawn: int = 0
    put_back: int = 0


@dataclass(eq=False)
class _Answer:
    """An answer that is being made."""

    request: int
    number: int
    sampling: SamplingParameters
    sequence: Sequence
    deadline: float | None
    reports: list[TokenReport] = field(default_factory=list)
    prompt_reports: list[TokenReport] = field(default_factory=list)


class Engine:
    """Answers requests.

    Args:
        model: a whole model of the local backend.
        settings: how much it does at once.
        text_of: text of token ids, for stop strings.
        clock: seconds.

    Attributes:
        version: of the weights, from 0; it grows with every change.
        counters: what it did.

    Raises:
        UserError: the model is divided, or of other modules, or the cache holds no page.
    """

    def __init__(
        self,
        model: GPTModel,
        settings: EngineSettings,
        *,
        text_of: TextOf | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_whole(model)
        self.model, self.settings = model, settings
        self.version = 0
        self.counters = Counters()
        self._text_of, self._clock = text_of, clock
        self._device = next(model.parameters()).device
        self._absorbed = HeadShape.of(model.config).absorbed_is_cheaper
        moe_layers = moe_layers_of(model) if settings.record_experts else 0
        self._shape = CacheShape.of(model.config, moe_layers=moe_layers)
        self.scheduler = Scheduler(
            Pages(self._shape.pages_in(settings.cache_bytes)),
            tokens_in_step=settings.tokens_in_step,
            most_running=settings.most_running,
        )
        self._weights = Weights(model)
        self._answers: dict[Sequence, _Answer] = {}
        self._numbers = count()
        self._cache: LatentCache | None = None
        self._rotation: Rotation | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is being made."""
        return bool(self._answers)

    @property
    def cache_bytes(self) -> int:
        """Memory that the cache takes now."""
        return 0 if self._cache is None else self._cache.nbytes

    def add(self, request: Request) -> int:
        """Take a request; its number.

        Raises:
            UserError: it cannot be answered.
        """
        self._refuse(request)
        sampling, number = request.sampling, next(self._numbers)
        deadline = None if request.seconds is None else self._clock() + request.seconds
        most = len(request.prompt) + sampling.max_tokens
        answers = [
            _Answer(
                number,
                index,
                sampling,
                Sequence(tuple(request.prompt), most, not sampling.prompt_log_probs),
                deadline,
            )
            for index in range(sampling.n)
        ]
        for answer in answers:
            self.scheduler.add(answer.sequence)
            self._answers[answer.sequence] = answer
        return number

    def _refuse(self, request: Request) -> None:
        vocabulary = self.model.vocab_size
        sampling = request.sampling
        if not request.prompt:
            raise UserError("The prompt has no tokens; write at least a word.")
        unknown = [
            token
            for token in (*request.prompt, *sampling.logit_bias, *sampling.stop_tokens)
            if not 0 <= token < vocabulary
        ]
        if unknown:
            raise UserError(
                f"Token {unknown[0]} is none of the model's, which are 0 to {vocabulary - 1}."
            )
        longest = self.model.max_sequence_length
        if len(request.prompt) + sampling.max_tokens > longest:
            raise UserError(
                f"{len(request.prompt)} tokens of prompt and {sampling.max_tokens} new ones exceed "
                f"the model's {longest} positions: shorten the prompt or ask for fewer."
            )
        if sampling.stop and self._text_of is None:
            raise UserError("Stop strings need a tokenizer, and this engine has none.")
        if sampling.top_log_probs > vocabulary:
            raise UserError(
                f"top_log_probs is {sampling.top_log_probs}, and the model has {vocabulary} tokens."
            )

    def run(self, requests: Iterable[Request]) -> list[Completion]:
        """All answers to requests, in their order."""
        numbers = {self.add(request) for request in requests}
        done = []
        while self.busy:
            done += [p.completion for p in self.step() if p.completion and p.request in numbers]
        return sorted(done, key=lambda completion: (completion.request, completion.number))

    def cancel(self, request: int) -> list[Progress]:
        """End the answers to a request as they are; nothing if they ended already."""
        mine = [answer for answer in self._answers.values() if answer.request == request]
        return [self._finish(answer, "cancelled") for answer in mine]

    def weights_changed(self) -> None:
        """Forget what was computed with older weights. Texts that are being made go on with the
        new ones: their latents are computed again. Writes that autograd sees need not be told."""
        self._weights.changed()
        self.version += 1
        self._forget()

    def release_cache(self) -> None:
        """Give the cache's memory back, until it is needed again."""
        self._forget()
        self._cache = None

    def _forget(self) -> None:
        for sequence in self.scheduler.forget():
            self._answers[sequence].prompt_reports.clear()

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Compute what the scheduler says, and report what came of it."""
        if self._weights.changed():
            self.version += 1
            self._forget()
        progress = [
            self._finish(answer, "timeout")
            for answer in list(self._answers.values())
            if answer.deadline is not None and self._clock() >= answer.deadline
        ]
        step = self.scheduler.step()
        for sequence in step.put_back:
            self._answers[sequence].prompt_reports.clear()
        self.counters.put_back += len(step.put_back)
        if not step.parts:
            return progress
        self.counters.steps += 1
        self.counters.computed += sum(part.count for part in step.parts)
        cache = self._cache_of_pages()
        cache.copy(step.copies)
        batch = batch_of([_span(part) for part in step.parts], self._absorbed, self._device)
        hidden, experts = hidden_states(self.model, batch, self._rotation, cache)
        cache.write_experts(batch.slots, experts)
        self._report_prompts(step.parts, batch, hidden)
        ready = [
            (self._answers[part.sequence], rows.stop - 1)
            for part, rows in zip(step.parts, batch.rows_of, strict=True)
            if part.reaches_end
        ]
        for part in step.parts:
            self.scheduler.computed(part)
        if ready:
            last = torch.tensor([row for _, row in ready], device=self._device)
            answers = [answer for answer, _ in ready]
            progress += self._extend(answers, logits(self.model, hidden[last]))
        return progress

    def _cache_of_pages(self) -> LatentCache:
        if self._cache is None:
            self._cache = LatentCache(self._shape, self.scheduler.pages.count, self._device)
            first = self.model.decoder.layers[0].self_attention
            self._rotation = Rotation.up_to(
                first, self.model.max_sequence_length, self._shape.dtype
            )
        return self._cache

    def _report_prompts(self, parts: list[Part], batch: Batch, hidden: Tensor) -> None:
        """Keep what is reported of a prompt's tokens, each expected by the one before."""
        for part, rows in zip(parts, batch.rows_of, strict=True):
            answer, begin = self._answers[part.sequence], part.sequence.computed
            wanted = part.sequence.prompt[begin + 1 : begin + part.count + 1]
            if answer.sampling.prompt_log_probs and wanted:
                expected = logits(self.model, hidden[rows][: len(wanted)])
                whose = [answer] * len(wanted)
                answer.prompt_reports += self._reports(list(wanted), expected, whose, None)

    def _extend(self, answers: list[_Answer], expected: Tensor) -> list[Progress]:
        """Draw the next token of each answer from logits [answers, vocab]."""
        formed = torch.stack(
            [
                row
                if a.sampling.plain and a.sampling.greedy
                else shaped(row, a.sampling, a.sequence.tokens)
                for a, row in zip(answers, expected, strict=True)
            ]
        )
        noise = [
            None
            if a.sampling.greedy
            else gumbel_noise(a.sampling.seed, a.number, len(a.reports), expected.shape[-1])
            for a in answers
        ]
        tokens = _drawn(formed, noise)
        reports = self._reports(tokens, expected, answers, formed)
        return [self._append(a, report) for a, report in zip(answers, reports, strict=True)]

    def _reports(
        self,
        tokens: list[int],
        expected: Tensor,
        answers: list[_Answer],
        formed: Tensor | None,
    ) -> list[TokenReport]:
        """What is known of tokens.

        Args:
            tokens: one for each row.
            expected: the model's logits, [rows, vocab].
            answers: whose row it is.
            formed: logits that the tokens were drawn from; None for a prompt's.
        """
        picked = torch.tensor(tokens, device=expected.device)[:, None]
        log_probs = expected.log_softmax(-1)
        own = log_probs.gather(1, picked)[:, 0].tolist()
        drawn: list[float | None] = [None] * len(tokens)
        if formed is not None:
            drawn = list(formed.log_softmax(-1).gather(1, picked)[:, 0].tolist())
        most = max(answer.sampling.top_log_probs for answer in answers)
        top = top_log_probs(log_probs, most)
        return [
            TokenReport(
                token,
                own[row],
                0.0 if formed is not None and answer.sampling.greedy else drawn[row],
                top[row][: answer.sampling.top_log_probs],
                self.version,
            )
            for row, (token, answer) in enumerate(zip(tokens, answers, strict=True))
        ]

    def _append(self, answer: _Answer, report: TokenReport) -> Progress:
        self.counters.drawn += 1
        answer.reports.append(report)
        answer.sequence.tokens.append(report.token)
        if self._stops(answer):
            return self._finish(answer, "stop", (report,))
        if len(answer.sequence.tokens) == answer.sequence.most:
            return self._finish(answer, "length", (report,))
        return Progress(answer.request, answer.number, (report,), None)

    def _stops(self, answer: _Answer) -> bool:
        tokens = [report.token for report in answer.reports]
        if tokens[-1] in answer.sampling.stop_tokens:
            return True
        if not answer.sampling.stop:
            return False
        text = self._text_of(tokens)
        return any(end in text for end in answer.sampling.stop)

    def _finish(
        self, answer: _Answer, reason: FinishReason, new: tuple[TokenReport, ...] = ()
    ) -> Progress:
        sequence, asked = answer.sequence, answer.sampling.prompt_log_probs
        experts = None
        if self.settings.record_experts and sequence.computed:
            experts = self._cache_of_pages().read_experts(sequence.pages, sequence.computed)
        self.scheduler.remove(sequence)
        del self._answers[sequence]
        completion = Completion(
            answer.request,
            answer.number,
            sequence.prompt,
            tuple(answer.reports),
            tuple(answer.prompt_reports) if asked else None,
            reason,
            experts,
        )
        return Progress(answer.request, answer.number, new, completion)


def _span(part: Part) -> Span:
    sequence = part.sequence
    end = sequence.computed + part.count
    return Span(sequence.tokens[sequence.computed : end], sequence.computed, sequence.pages)


def _drawn(formed: Tensor, noise: list[Tensor | None]) -> list[int]:
    """The tokens drawn from each row of [rows, vocab]."""
    rows = [row for row, drawn in enumerate(noise) if drawn is not None]
    if rows:
        together = torch.stack([noise[row] for row in rows]).to(formed.device)
        formed = formed.index_add(0, torch.tensor(rows, device=formed.device), together)
    return draw(formed, None).tolist()
