"""Which sequences compute how many tokens in a step: continuous batching over a paged cache.

Sequences that run go first, the oldest first; then waiting ones are let in while there are tokens
in the step and pages for their whole texts. Where a running one needs a page and there is none,
known prefixes are given up, and then the youngest that runs is put back in the line: what it had is
computed again later. The oldest is never put back, so all come to their end.

Nothing here computes or knows a model: numbers in, numbers out.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from dsv3_plugin.inference.pages import PAGE_TOKENS, Pages, pages_for
from dsv3_plugin.inference.prefixes import Known, Prefixes
from dsv3_plugin.inference.requests import WrongField


@dataclass(eq=False)
class Sequence:
    """A text that grows.

    Attributes:
        prompt: what it began with.
        most: how long it may become.
        shares_prefix: whether known latents do for its prompt; not where all positions are asked
            for what they expect.
        computed: so many of its tokens are in the cache.
        pages: where.
        times_put_back: how often it lost its pages.
        tokens: the prompt, then what was added to it.
    """

    prompt: tuple[int, ...]
    most: int
    shares_prefix: bool = True
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    times_put_back: int = 0
    tokens: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True)
class Part:
    """What a sequence computes in a step.

    Attributes:
        sequence: whose.
        count: so many of its pending tokens.
    """

    sequence: Sequence
    count: int

    @property
    def reaches_end(self) -> bool:
        """Whether the next token can be chosen after it."""
        return self.count == self.sequence.pending


@dataclass(frozen=True)
class Step:
    """A step's work.

    Attributes:
        parts: what is computed.
        fresh: pages that are handed out for it.
        copies: (from, to, count), pages of which so many tokens are to be copied before.
        put_back: sequences whose latents are gone.
    """

    parts: list[Part]
    fresh: list[int]
    copies: list[tuple[int, int, int]]
    put_back: list[Sequence]


class Scheduler:
    """The sequences of an engine, and their pages.

    Args:
        pages: of the cache.
        tokens_in_step: computed at most in a step, drafts aside.
        most_running: sequences at most in a step.
        room: for so many tokens of drafts behind each text.
    """

    def __init__(
        self, pages: Pages, *, tokens_in_step: int, most_running: int, room: int = 0
    ) -> None:
        self.pages = pages
        self.prefixes = Prefixes(pages)
        self._room = room
        self._tokens_in_step = tokens_in_step
        self._most_running = most_running
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def held(self) -> int:
        """Pages that are not free, nor known and free when needed; while none runs, none."""
        return self.pages.used - len(self.prefixes)

    @property
    def waiting(self) -> int:
        """Sequences that have no pages."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that have some."""
        return len(self._running)

    def __iter__(self) -> Iterator[Sequence]:
        """All of them, the oldest first."""
        yield from self._running
        yield from self._waiting

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the line.

        Raises:
            WrongField: all pages together would not hold it.
        """
        self.require_room(sequence)
        self._waiting.append(sequence)

    def require_room(self, sequence: Sequence) -> None:
        """Look whether a sequence could run if it were alone.

        Raises:
            WrongField: all pages together would not hold it.
        """
        needed = pages_for(sequence.most + self._room)
        if needed > self.pages.count:
            raise WrongField(
                f"A text of {sequence.most} tokens needs {needed} pages of {PAGE_TOKENS} tokens "
                f"and the cache has {self.pages.count}: give it more memory, or ask for fewer.",
                "max_tokens",
            )

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence that ended, or that nobody wants any more."""
        if sequence in self._running:
            self._running.remove(sequence)
            if sequence.computed > len(sequence.prompt):  # a conversation may go on from it
                self.prefixes.add(sequence.tokens[: sequence.computed], sequence.pages)
            self._release(sequence)
        else:
            self._waiting.remove(sequence)

    def forget(self) -> list[Sequence]:
        """Put all back in the line and forget known prefixes: the weights changed, or the memory is
        wanted elsewhere."""
        running = list(self._running)
        for sequence in reversed(running):
            self._put_back(sequence)
        self.prefixes.clear()
        return running

    def step(self) -> Step:
        """The next step; sequences have their pages for it."""
        parts: list[Part] = []
        put_back: list[Sequence] = []
        left = self._tokens_in_step
        for sequence in list(self._running):
            if sequence not in self._running or left == 0:
                continue  # put back by an older one
            count = min(sequence.pending, left)
            if self._grow(sequence, sequence.computed + count + self._room, put_back):
                parts.append(Part(sequence, count))
                left -= count
        copies: list[tuple[int, int, int]] = []
        if not put_back:
            self._let_in(left, parts, copies)
        return Step(parts, self.pages.fresh(), copies, put_back)

    def _grow(self, sequence: Sequence, length: int, put_back: list[Sequence]) -> bool:
        """Give a running sequence pages for so many tokens; False if it was put back itself."""
        while len(sequence.pages) < pages_for(length):
            if self.pages.free or self.prefixes.give_up():
                sequence.pages.append(self.pages.take())
                continue
            youngest = self._running[-1]
            self._put_back(youngest)
            put_back.append(youngest)
            if youngest is sequence:
                return False
        return True

    def _let_in(self, left: int, parts: list[Part], copies: list[tuple[int, int, int]]) -> None:
        """Start waiting sequences while their texts find room."""
        passed: deque[Sequence] = deque()
        prompts = {s.prompt for s in self._running if s.computed < len(s.prompt)}
        while self._waiting and left and len(self._running) < self._most_running:
            sequence = self._waiting.popleft()
            if sequence.shares_prefix and sequence.prompt in prompts and self._would_gain(sequence):
                passed.append(sequence)
                continue
            if not self._start(sequence, copies):
                self._waiting.appendleft(sequence)
                break
            self._running.append(sequence)
            parts.append(Part(sequence, min(sequence.pending, left)))
            left -= parts[-1].count
            if sequence.shares_prefix:
                prompts.add(sequence.prompt)
        self._waiting.extendleft(reversed(passed))

    def _would_gain(self, sequence: Sequence) -> bool:
        """Whether a prompt that another computes will be known better than it is now."""
        return self.prefixes.find(sequence.tokens).tokens < len(sequence.tokens) - 1

    def _start(self, sequence: Sequence, copies: list[tuple[int, int, int]]) -> bool:
        """Give a waiting sequence pages for its text, of which some may be known."""
        known = self.prefixes.find(sequence.tokens) if sequence.shares_prefix else Known()
        if known.partial is not None and self._give_pages(sequence, known, [known.partial]):
            copies.append((known.partial, sequence.pages[len(known.pages)], known.rest))
            return True
        return self._give_pages(sequence, Known(known.pages), [])

    def _give_pages(self, sequence: Sequence, known: Known, read: list[int]) -> bool:
        """The known pages and new ones, if there are enough.

        Args:
            read: pages that must not be given up for it: they are copied before the step. Later
                sequences of the step may take them, since copies are made in their order.
        """
        held = [*known.pages, *read]
        self.pages.share(held)
        needed = pages_for(len(sequence.tokens) + self._room) - len(known.pages)
        while self.pages.free < needed and self.prefixes.give_up():
            pass
        if self.pages.free < needed:
            self.pages.release(held)
            return False
        self.pages.release(read)
        sequence.pages = [*known.pages, *(self.pages.take() for _ in range(needed))]
        sequence.computed = known.tokens
        return True

    def computed(self, part: Part) -> None:
        """Say that a part was computed."""
        sequence = part.sequence
        before, sequence.computed = sequence.computed, sequence.computed + part.count
        if before < len(sequence.prompt) <= sequence.computed:
            self.prefixes.add(sequence.prompt, sequence.pages)

    def _put_back(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        sequence.times_put_back += 1
        self._waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pages.release(sequence.pages)
        sequence.pages, sequence.computed = [], 0
