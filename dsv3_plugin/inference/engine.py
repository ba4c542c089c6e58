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
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.answers import Answer, TextOf
from dsv3_plugin.inference.attention import HeadShape, Rotation
from dsv3_plugin.inference.batch import Batch, Span, batch_of
from dsv3_plugin.inference.cache import CacheShape, LatentCache
from dsv3_plugin.inference.drawing import Place, drawn_tokens, formed_logits, reports_of
from dsv3_plugin.inference.forward import hidden_states, logits, moe_layers_of, require_whole
from dsv3_plugin.inference.pages import Pages
from dsv3_plugin.inference.requests import Completion, FinishReason, Request, TokenReport
from dsv3_plugin.inference.scheduler import Part, Scheduler, Sequence
from dsv3_plugin.inference.speculation import Predictor, Trail
from dsv3_plugin.inference.weights import Weights


@dataclass(frozen=True)
class EngineSettings:
    """How much an engine does at once.

    Attributes:
        cache_bytes: memory of cached latents.
        tokens_in_step: a longer prompt is computed in several steps, between which others get
            tokens (Sarathi-Serve, arXiv 2403.02310, section 5, measures 512 and 2048).
        most_running: sequences at most (as vLLM's `max_num_seqs`).
        record_experts: report where tokens went.
        drafts: tokens guessed ahead by multi-token prediction; they cost their share of a step and
            change no answer.
    """

    cache_bytes: int
    tokens_in_step: int = 2048
    most_running: int = 256
    record_experts: bool = False
    drafts: int = 0


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
        guessed: how often a first, second, … token was guessed ahead and judged.
        accepted: how often it was the one.
    """

    steps: int = 0
    computed: int = 0
    drawn: int = 0
    put_back: int = 0
    guessed: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


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
        UserError: the model is divided, or of other modules, or is to guess and cannot, or the
            cache holds no page.
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
        self.counters = Counters(guessed=[0] * settings.drafts, accepted=[0] * settings.drafts)
        self._text_of, self._clock = text_of, clock
        self._device = next(model.parameters()).device
        self._absorbed = HeadShape.of(model.config).absorbed_is_cheaper
        moe_layers = moe_layers_of(model) if settings.record_experts else 0
        self._predictor = (
            Predictor(model, settings.drafts, self._absorbed) if settings.drafts else None
        )
        predictors = self._predictor.depth if self._predictor else 0
        self._shape = CacheShape.of(model.config, predictors=predictors, moe_layers=moe_layers)
        self.scheduler = Scheduler(
            Pages(self._shape.pages_in(settings.cache_bytes)),
            tokens_in_step=settings.tokens_in_step,
            most_running=settings.most_running,
            room=2 * settings.drafts,  # guesses that are judged, and behind them the next
        )
        self._weights = Weights([model])
        self._rested = True  # no step since there was nothing to do
        self._answers: dict[Sequence, Answer] = {}
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
        return self.add_all([request])[0]

    def add_all(self, requests: Iterable[Request]) -> list[int]:
        """Take requests, all or none; their numbers.

        Raises:
            UserError: one cannot be answered.
        """
        asked = [self._answers_to(request) for request in requests]
        numbers = []
        for answers in asked:
            for answer in answers:
                self.scheduler.add(answer.sequence)
                self._answers[answer.sequence] = answer
            numbers.append(answers[0].request)
        return numbers

    def _answers_to(self, request: Request) -> list[Answer]:
        """What is to be made of a request, which is looked at here."""
        self._refuse(request)
        sampling, number = request.sampling, next(self._numbers)
        deadline = None if request.seconds is None else self._clock() + request.seconds
        most = len(request.prompt) + sampling.max_tokens
        shares = not sampling.prompt_log_probs
        sequences = [Sequence(tuple(request.prompt), most, shares) for _ in range(sampling.n)]
        self.scheduler.require_room(sequences[0])
        return [
            Answer(number, index, sampling, sequence, deadline)
            for index, sequence in enumerate(sequences)
        ]

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

    def unbegun(self) -> Counter[int]:
        """How many answers of each request have neither a token nor latents."""
        return Counter(a.request for a in self._answers.values() if not a.begun)

    def weights_changed(self) -> None:
        """Forget what was computed with older weights. Texts that are being made go on with the
        new ones: their latents are computed again."""
        self._weights.changed(thorough=True)
        self.version += 1
        self._forget()

    def release_cache(self) -> None:
        """Give the cache's memory back, until it is needed again."""
        self._forget()
        self._cache = None

    def _forget(self) -> None:
        for sequence in self.scheduler.forget():
            self._answers[sequence].begin_again()

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Compute what the scheduler says, and report what came of it."""
        if self._weights.changed(thorough=self._rested):
            self.version += 1
            self._forget()
        self._rested = not self._answers
        progress = [
            self._finish(answer, "timeout")
            for answer in list(self._answers.values())
            if answer.deadline is not None and self._clock() >= answer.deadline
        ]
        step = self.scheduler.step()
        for sequence in step.put_back:
            self._answers[sequence].begin_again()
        self.counters.put_back += len(step.put_back)
        if not step.parts:
            return progress
        self.counters.steps += 1
        self.counters.computed += sum(part.count for part in step.parts)
        cache = self._cache_of_pages()
        cache.copy(step.copies)
        spans = [self._span(part) for part in step.parts]
        batch = batch_of(spans, self._absorbed, self._device)
        hidden, experts = hidden_states(self.model, batch, self._rotation, cache)
        cache.write_experts(batch.slots, experts)
        self._report_prompts(step.parts, batch, hidden)
        return progress + self._go_on(step.parts, batch, hidden)

    def _go_on(self, parts: list[Part], batch: Batch, hidden: Tensor) -> list[Progress]:
        """Draw what follows the computed tokens, and guess ahead."""
        rows: list[int] = []
        places: list[Place] = []
        for part, of_span in zip(parts, batch.rows_of, strict=True):
            if part.reaches_end:
                answer = self._answers[part.sequence]
                rows += range(of_span.start + part.count - 1, of_span.stop)
                counts = range(len(answer.guesses) + 1)
                places += [answer.place(answer.guesses[:count]) for count in counts]
        last = torch.tensor(rows, device=self._device)
        reports = iter(self._draw(places, hidden[last]) if rows else ())
        progress, trails = [], []
        for part, of_span in zip(parts, batch.rows_of, strict=True):
            answer, reached = self._answers[part.sequence], part.reaches_end
            own = [next(reports) for _ in range(len(answer.guesses) + 1)] if reached else []
            self.scheduler.computed(part)
            right = self._judge(answer, own)
            if reached:
                progress.append(self._append(answer, own[: right + 1], right))
            if self._predictor and answer.sequence in self._answers:
                states = hidden[of_span][: part.count + right]
                trails.append(
                    Trail(answer.sequence, states, self._wanted(answer, reached), answer.kept)
                )
        if trails:
            self._guess(trails)
        return progress

    def _judge(self, answer: Answer, own: list[TokenReport]) -> int:
        """How many guesses of an answer are what was drawn in their places."""
        right = 0
        for place, guess in enumerate(answer.guesses):
            self.counters.guessed[place] += 1
            if own[place].token != guess:
                break
            self.counters.accepted[place] += 1
            right += 1
        return right

    def _wanted(self, answer: Answer, reached: bool) -> int:
        left = answer.sequence.most - len(answer.sequence.tokens)
        return min(self.settings.drafts, left - 1) if reached else 0

    def _guess(self, trails: list[Trail]) -> None:
        answers = [self._answers[trail.sequence] for trail in trails]

        def choose(numbers: list[int], states: Tensor) -> list[int]:
            places = [answers[number].place(trails[number].guesses) for number in numbers]
            return drawn_tokens(places, formed_logits(places, logits(self.model, states)))

        self._predictor.guess(trails, self._cache_of_pages(), self._rotation, choose)
        for answer, trail in zip(answers, trails, strict=True):
            answer.guesses = trail.guesses

    def _span(self, part: Part) -> Span:
        """The tokens of a part, and behind its end those that were guessed."""
        sequence, guesses = part.sequence, self._answers[part.sequence].guesses
        end = sequence.computed + part.count
        tokens = sequence.tokens[sequence.computed : end]
        if part.reaches_end:
            tokens += guesses
        return Span(tokens, sequence.computed, sequence.pages)

    def _cache_of_pages(self) -> LatentCache:
        if self._cache is None:
            self._cache = LatentCache(self._shape, self.scheduler.pages.count, self._device)
            first = self.model.decoder.layers[0].self_attention
            longest = self.model.max_sequence_length + 2 * self.settings.drafts
            self._rotation = Rotation.up_to(first, longest, self._shape.dtype)
        return self._cache

    def _report_prompts(self, parts: list[Part], batch: Batch, hidden: Tensor) -> None:
        """Keep what is reported of a prompt's tokens, each expected by the one before."""
        for part, rows in zip(parts, batch.rows_of, strict=True):
            answer, begin = self._answers[part.sequence], part.sequence.computed
            wanted = part.sequence.prompt[begin + 1 : begin + part.count + 1]
            if answer.sampling.prompt_log_probs and wanted:
                expected = logits(self.model, hidden[rows][: len(wanted)])
                whose = [answer.sampling] * len(wanted)
                reports = reports_of(wanted, expected, whose, None, self.version)
                answer.prompt_reports += reports

    def _draw(self, places: list[Place], hidden: Tensor) -> list[TokenReport]:
        """The tokens of places, from the model's states [places, h] before them."""
        expected = logits(self.model, hidden)
        formed = formed_logits(places, expected)
        tokens = drawn_tokens(places, formed)
        sampling = [place.sampling for place in places]
        return reports_of(tokens, expected, sampling, formed, self.version)

    def _append(self, answer: Answer, drawn: list[TokenReport], right: int) -> Progress:
        """Add what was drawn to an answer, as far as it goes on.

        Args:
            drawn: tokens, all but the last of which were guessed.
            right: so many guesses are in the cache.
        """
        new, reason = answer.take(drawn, self._text_of)
        self.counters.drawn += len(new)
        answer.sequence.computed += min(right, len(new) - 1)
        if reason:
            return self._finish(answer, reason, tuple(new))
        return Progress(answer.request, answer.number, tuple(new), None)

    def _finish(
        self, answer: Answer, reason: FinishReason, new: tuple[TokenReport, ...] = ()
    ) -> Progress:
        sequence, experts = answer.sequence, None
        if self.settings.record_experts and sequence.computed:
            experts = self._cache_of_pages().read_experts(sequence.pages, sequence.computed)
        self.scheduler.remove(sequence)
        del self._answers[sequence]
        self._rested = not self._answers
        return Progress(answer.request, answer.number, new, answer.completion(reason, experts))
