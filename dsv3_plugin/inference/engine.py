"""Text from a model, many requests at a time.

    engine = Engine(model, EngineSettings(cache_bytes=2**30))
    number = engine.add(Request(prompt, SamplingParameters(max_tokens=100)))
    while engine.busy:
        for progress in engine.step():
            ...

or `engine.run(requests)` for all answers at once. What a step computes decides the scheduler, what
comes of it the sampling; here they meet the model. The model's parameters are read where they lie:
in RL the trainer's own, on all ranks that share a model (see company.py).
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Several
from itertools import count

import torch
from torch import Tensor, nn

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.answers import Answer, reports_of_step
from dsv3_plugin.inference.attention import HeadShape, Rotation
from dsv3_plugin.inference.batch import Batch, Span, batch_of
from dsv3_plugin.inference.cache import CacheShape, LatentCache, pages_in
from dsv3_plugin.inference.drawing import drawn_tokens, formed_logits
from dsv3_plugin.inference.forward import ModelParts, logits
from dsv3_plugin.inference.pages import Pages
from dsv3_plugin.inference.requests import (
    Completion,
    FinishReason,
    Orders,
    Progress,
    Request,
    TokenReport,
)
from dsv3_plugin.inference.scheduler import Part, Scheduler, Sequence
from dsv3_plugin.inference.settings import Counters, EngineSettings
from dsv3_plugin.inference.speculation import Predictor, Trail
from dsv3_plugin.inference.text import GrowingText, TextOf
from dsv3_plugin.inference.weights import Weights


class Engine:
    """Answers requests.

    Ranks that have a model together (by pipeline, by experts) make an engine each, with the same
    settings, and call `run`, or `busy_anywhere` and `step`, equally often. Of a pipeline the first
    rank is asked, and all get the answers. Data-parallel ranks are asked each for itself.

    Args:
        model: a model of the local backend, or this rank's chunks of it as the trainer holds them.
        settings: how much it does at once; the cache's bytes are a rank's.
        text_of: text of token ids, for stop strings.
        clock: seconds.

    Attributes:
        model: the part that this rank has of it, the last if it has several.
        version: of the weights, from 0; it grows with every change.
        counters: what it did.

    Raises:
        UserError: the model is divided by tensors or context, or is of other modules, or is to
            guess and cannot, or the cache holds no page.
    """

    def __init__(
        self,
        model: nn.Module | Several[nn.Module],
        settings: EngineSettings,
        *,
        text_of: TextOf | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = parts = ModelParts(model)
        self._company = parts.company
        self.model, self.settings, self.version = parts.chunks[-1], settings, 0
        self.counters = Counters(guessed=[0] * settings.drafts, accepted=[0] * settings.drafts)
        self._text_of, self._clock = text_of, clock
        self._absorbed = HeadShape.of(parts.config).absorbed_is_cheaper
        predictors = parts.predictors if settings.drafts else 0
        if settings.drafts and not max(self._company.of_pipeline(predictors)):
            raise UserError(
                "The model has no layers of multi-token prediction, which guess tokens ahead: "
                "leave drafts out."
            )
        self._predictor = Predictor(parts, settings.drafts, self._absorbed) if predictors else None
        self._shape = CacheShape.of(
            parts.config,
            layers=len(parts.layers),
            predictors=predictors,
            moe_layers=len(parts.moe_layers) if settings.record_experts else 0,
        )
        page_bytes = max(self._company.of_pipeline(self._shape.page_bytes))
        self.scheduler = Scheduler(
            Pages(pages_in(settings.cache_bytes, page_bytes)),
            tokens_in_step=settings.tokens_in_step,
            most_running=settings.most_running,
            room=2 * settings.drafts,  # guesses that are judged, and behind them the next
        )
        self._weights = Weights(parts.chunks)
        self._rested = True  # no step since nobody had anything to do
        self._answers: dict[Sequence, Answer] = {}
        self._asked: list[tuple[int, Request]] = []
        self._unwanted: list[tuple[tuple[int, int], FinishReason]] = []
        self._numbers = count()
        self._cache: LatentCache | None = None
        self._rotation: Rotation | None = None

    @property
    def busy(self) -> bool:
        """Whether an answer is being made."""
        return bool(self._answers)

    def busy_anywhere(self) -> bool:
        """Whether this rank or one that computes with it has an answer to make; all of them have to
        ask. While it is so, all of them have to call `step`."""
        (busy,) = self._company.most([self.busy])
        self._rested |= not busy
        return bool(busy)

    @property
    def leads(self) -> bool:
        """Whether this rank is asked: the first of a pipeline is, for all of it."""
        return self._company.leads

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
            ValueError: this rank is not the one that is asked.
        """
        if not self.leads:
            raise ValueError("the first rank of a pipeline is asked, for all of it")
        requests = [request.seeded for request in requests]
        for request in requests:
            request.require_answerable(
                self.model.vocab_size,
                self.model.max_sequence_length,
                spells=self._text_of is not None,
            )
            self.scheduler.require_room(self._sequence(request))
        numbers = [self._take(next(self._numbers), request) for request in requests]
        if self._company.pipeline is not None:
            self._asked += zip(numbers, requests, strict=True)
        return numbers

    def _take(self, number: int, request: Request) -> int:
        """Put answers to a request in the line; its number."""
        deadline = None if request.seconds is None else self._clock() + request.seconds
        for index in range(request.sampling.n):
            sequence = self._sequence(request)
            self.scheduler.add(sequence)
            answer = Answer(number, index, request.number, request.sampling, sequence, deadline)
            if request.sampling.stop and self._text_of is not None:
                answer.text = GrowingText(self._text_of)
            self._answers[sequence] = answer
        return number

    def _sequence(self, request: Request) -> Sequence:
        sampling = request.sampling
        most = len(request.prompt) + sampling.max_tokens
        return Sequence(tuple(request.prompt), most, not sampling.prompt_log_probs)

    def run(self, requests: Iterable[Request]) -> list[Completion]:
        """All answers to requests, in their order.

        In a pipeline the requests of the first rank are meant, and all get the answers.

        Raises:
            UserError: one cannot be answered; then none is.
        """
        numbers = set(self.add_all(requests)) if self.leads else None
        done = []
        while self.busy_anywhere():
            completions = (p.completion for p in self.step() if p.completion)
            done += [c for c in completions if numbers is None or c.request in numbers]
        return sorted(done, key=lambda completion: (completion.request, completion.number))

    def cancel(self, request: int) -> list[Progress]:
        """End the answers to a request as they are; nothing if they ended already. In a pipeline
        they end in the next step, which reports it."""
        mine = [answer for answer in self._answers.values() if answer.request == request]
        if self._company.pipeline is None:
            return [self._finish(answer, "cancelled") for answer in mine]
        self._unwanted += [((answer.request, answer.number), "cancelled") for answer in mine]
        return []

    def unbegun(self) -> Counter[int]:
        """How many answers of each request have neither a token nor latents."""
        return Counter(a.request for a in self._answers.values() if not a.begun)

    def weights_changed(self) -> None:
        """Forget what was computed with older weights. Texts that are being made go on with the
        new ones: their latents are computed again. In company every rank says it."""
        self._weights.changed(thorough=True)
        self.version += 1
        self._forget()

    def release_cache(self) -> None:
        """Give the cache's memory back, until it is needed again. In company every rank does."""
        self._forget()
        self._cache = None

    def _forget(self) -> None:
        for sequence in self.scheduler.forget():
            self._answers[sequence].begin_again()

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Compute what the scheduler says, and report what came of it."""
        progress = self._obey(self._company.from_leader(self._orders() if self.leads else None))
        if not self._agree():
            return progress
        step = self.scheduler.step()
        for sequence in step.put_back:
            self._answers[sequence].begin_again()
        self.counters.put_back += len(step.put_back)
        if not step.parts and self._company.experts is None:
            return progress
        self.counters.steps += bool(step.parts)
        self.counters.computed += sum(part.count for part in step.parts)
        self._cache_of_pages().prepare(step.fresh, step.copies)
        batch, hidden = self.compute([self._span(part) for part in step.parts])
        return progress + self._go_on(step.parts, batch, hidden)

    def compute(self, spans: Several[Span]) -> tuple[Batch, Tensor | None]:
        """Have the model compute tokens, which the cache has from then on; `step` does, and so may
        who has pages without a scheduler. In company all ranks do at once.

        Returns:
            The rows, and the main model's last hidden states of them, [t, h], where its end is.
        """
        cache = self._cache_of_pages()
        batch = batch_of(spans, self._absorbed, self._parts.device)
        hidden, experts = self._parts.hidden_states(batch, self._rotation, cache)
        cache.write_experts(batch.slots, experts)
        return batch, hidden

    def _orders(self) -> Orders:
        """What there is to tell."""
        now = self._clock()
        late = [
            ((answer.request, answer.number), "timeout")
            for answer in self._answers.values()
            if answer.deadline is not None and now >= answer.deadline
        ]
        orders = Orders(tuple(self._asked), (*late, *self._unwanted))
        self._asked, self._unwanted = [], []
        return orders

    def _obey(self, orders: Orders) -> list[Progress]:
        """Do what the first rank of the pipeline says."""
        if not self.leads:
            for number, request in orders.asked:
                self._take(number, request)
        known = {(a.request, a.number): a for a in self._answers.values()} if orders.ended else {}
        ended = {which: reason for which, reason in orders.ended if which in known}
        return [self._finish(known[which], reason) for which, reason in ended.items()]

    def _agree(self) -> bool:
        """Come to the same version of the weights on all ranks; whether there is work on any."""
        changed = self._weights.changed(thorough=self._rested)
        version, busy = self._company.most([self.version + changed, self.busy])
        if version > self.version:
            self.version = version
            self._forget()
        self._rested = not busy
        return bool(busy)

    def _go_on(self, parts: list[Part], batch: Batch, hidden: Tensor | None) -> list[Progress]:
        """Draw what follows the computed tokens, and guess ahead.

        Args:
            parts: of the step.
            batch: their tokens.
            hidden: what the model made of them, where this rank has its end.
        """
        said, prompts, drawn = None, [], []
        if hidden is not None:
            answers = [self._answers[part.sequence] for part in parts]
            said = reports_of_step(
                self._parts.head, parts, answers, batch.rows_of, hidden, self.version
            )
        if parts:
            prompts, drawn = self._company.from_head(said)
        reports = iter(drawn)
        progress, guessing = [], []
        for part, of_span, of_prompt in zip(parts, batch.rows_of, prompts, strict=True):
            answer, reached = self._answers[part.sequence], part.reaches_end
            answer.prompt_reports += of_prompt
            own = [next(reports) for _ in range(len(answer.guesses) + 1)] if reached else []
            self.scheduler.computed(part)
            right = self._judge(answer, own)
            if reached:
                progress.append(self._append(answer, own[: right + 1], right))
            if self.settings.drafts and answer.sequence in self._answers:
                rows = slice(of_span.start, of_span.start + part.count + right)
                guessing.append((answer, rows, self._wanted(answer, reached)))
        if self.settings.drafts:
            self._guess(guessing, hidden)
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

    def _guess(self, asked: list[tuple[Answer, slice, int]], hidden: Tensor | None) -> None:
        """Guess what follows answers, given the rows of what is right of their steps, and how many
        guesses each wants."""
        guesses: list[list[int]] = []
        if self._predictor is not None:
            trails = [
                Trail(answer.sequence, hidden[rows], wanted, answer.kept)
                for answer, rows, wanted in asked
            ]

            def choose(numbers: list[int], states: Tensor) -> list[int]:
                places = [asked[number][0].place(trails[number].guesses) for number in numbers]
                expected = logits(self._parts.head, states)
                return drawn_tokens(places, formed_logits(places, expected))

            self._predictor.guess(trails, self._cache_of_pages(), self._rotation, choose)
            guesses = [trail.guesses for trail in trails]
        if asked:
            guesses = self._company.from_head(guesses)
        for (answer, _, _), of_answer in zip(asked, guesses, strict=True):
            answer.guesses = of_answer

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
            self._cache = LatentCache(self._shape, self.scheduler.pages.count, self._parts.device)
            longest = self.model.max_sequence_length + 2 * self.settings.drafts
            self._rotation = self._parts.rotation(longest)
        return self._cache

    def _append(self, answer: Answer, drawn: list[TokenReport], right: int) -> Progress:
        """Add what was drawn to an answer, as far as it goes on.

        Args:
            drawn: tokens, all but the last of which were guessed.
            right: so many guesses are in the cache.
        """
        new, reason = answer.take(drawn)
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
            mine = self._cache_of_pages().read_experts(sequence.pages, sequence.computed)
            experts = self._parts.of_all_layers(mine)
        self.scheduler.remove(sequence)
        del self._answers[sequence]
        if self._company.alone:
            self._rested = not self._answers
        return Progress(answer.request, answer.number, new, answer.completion(reason, experts))
