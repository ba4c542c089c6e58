"""Scheduling and pages: nothing is lost, nothing is shared that differs, all come to their end."""

from collections import defaultdict
from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.pages import PAGE_TOKENS, Pages, pages_for
from dsv3_plugin.inference.prefixes import Prefixes
from dsv3_plugin.inference.scheduler import Scheduler, Sequence


class Memory:
    """What a cache holds: in the place of a latent, a name of all tokens that it would depend on.

    Each step's reads are compared with the texts.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.rows: dict[int, list[int]] = defaultdict(lambda: [0] * PAGE_TOKENS)
        self.computed = 0
        self._names: dict[Sequence, list[int]] = defaultdict(list)

    def names(self, sequence: Sequence) -> list[int]:
        """Of a text's beginnings, the shortest first."""
        names = self._names[sequence]
        for token in sequence.tokens[len(names) :]:
            names.append(hash((names[-1] if names else None, token)))
        return names

    def step(self, new_token: int) -> list[Sequence]:
        """Do what the scheduler says; returns the sequences that got a token."""
        step = self.scheduler.step()
        for source, target, count in step.copies:
            self.rows[target] = [*self.rows[source][:count], *[None] * (PAGE_TOKENS - count)]
        for page in set(step.fresh) - {target for _, target, _ in step.copies}:
            self.rows[page] = [None] * PAGE_TOKENS
        for part in step.parts:
            names, pages = self.names(part.sequence), part.sequence.pages
            for place in range(part.sequence.computed, part.sequence.computed + part.count):
                self.rows[pages[place // PAGE_TOKENS]][place % PAGE_TOKENS] = names[place]
            self.computed += part.count
        grown = []
        for part in step.parts:
            sequence, end = part.sequence, part.sequence.computed + part.count
            read = chain.from_iterable(self.rows[page] for page in sequence.pages)
            assert list(islice(read, end)) == self.names(sequence)[:end]
            assert set(read) <= {None}  # nothing of a text that had the page before
            if part.reaches_end:
                grown.append(sequence)
            self.scheduler.computed(part)
        for sequence in grown:
            sequence.tokens.append(new_token)
        return grown


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_text_is_computed_in_its_own_pages_and_comes_to_its_end(data):
    pages = Pages(data.draw(st.integers(3, 12)))
    room = data.draw(st.sampled_from([0, 4]))
    scheduler = Scheduler(
        pages,
        tokens_in_step=data.draw(st.sampled_from([1, 50, 1000])),
        most_running=data.draw(st.integers(1, 6)),
        room=room,
    )
    lengths = st.sampled_from([1, 2, 63, 64, 65, 100, 128])
    longest = pages.count * PAGE_TOKENS - room
    ends = {}
    for _ in range(data.draw(st.integers(1, 8))):
        # Few different tokens: beginnings are often alike, as a conversation's are.
        prompt = (data.draw(st.integers(0, 1)),) * data.draw(lengths)
        most = len(prompt) + data.draw(st.integers(1, 70))
        sequence = Sequence(prompt[: longest - 1], min(most, longest))
        scheduler.add(sequence)
        if data.draw(st.booleans()):  # ends before its time
            ends[sequence] = len(sequence.prompt) + 1
    memory = Memory(scheduler)
    for _ in range(60_000):
        for sequence in memory.step(1):
            if len(sequence.tokens) >= ends.get(sequence, sequence.most):
                scheduler.remove(sequence)
        if not list(scheduler):
            break
    assert not list(scheduler)
    assert scheduler.held == 0
    assert pages.used == len(scheduler.prefixes)
    scheduler.prefixes.clear()
    assert pages.free == pages.count


def run(scheduler: Scheduler, count: int) -> Memory:
    memory = Memory(scheduler)
    for _ in range(count):
        for sequence in memory.step(7):
            if len(sequence.tokens) == sequence.most:
                scheduler.remove(sequence)
    return memory


@pytest.mark.parametrize("most_running", [2, 8])
def test_answers_to_one_prompt_compute_it_once(most_running):
    scheduler = Scheduler(Pages(50), tokens_in_step=1000, most_running=most_running)
    prompt = tuple(range(150))
    for _ in range(8):
        scheduler.add(Sequence(prompt, len(prompt) + 1))
    memory = run(scheduler, 6)
    assert not list(scheduler)
    assert memory.computed == len(prompt) + 7  # each of the others its last token


def test_an_older_text_takes_the_pages_of_a_younger_one():
    scheduler = Scheduler(Pages(3), tokens_in_step=1000, most_running=8)
    older, younger = Sequence((1,) * 60, 130), Sequence((2,) * 60, 130)
    scheduler.add(older)
    scheduler.add(younger)
    memory = run(scheduler, 1)
    while not younger.times_put_back:
        memory.step(3)
    assert older.times_put_back == 0
    assert (scheduler.running, scheduler.waiting) == (1, 1)
    assert younger.computed == 0


def test_what_will_never_fit_is_refused():
    with pytest.raises(UserError, match="needs 4 pages of 64 tokens and the cache has 3"):
        Scheduler(Pages(3), tokens_in_step=8, most_running=1).add(Sequence((1,), 193))


def test_known_pages_are_forgotten_with_the_weights():
    scheduler = Scheduler(Pages(8), tokens_in_step=1000, most_running=2)
    scheduler.add(Sequence((5,) * 100, 200))
    run(scheduler, 3)
    assert len(scheduler.prefixes) == 2
    (sequence,) = scheduler.forget()
    assert (sequence.computed, sequence.pages) == (0, [])
    assert scheduler.pages.free == 8
    assert scheduler.prefixes.find([5] * 100).tokens == 0


def test_the_page_of_no_use_for_longest_is_given_up_first():
    pages = Pages(8)
    prefixes = Prefixes(pages)
    texts = [[text] * (2 * PAGE_TOKENS + 1) for text in range(2)]
    for text in texts:
        held = [pages.take() for _ in range(pages_for(len(text)))]
        prefixes.add(text, held)
        pages.release(held)
    assert prefixes.find(texts[0]).tokens == 2 * PAGE_TOKENS  # so the other is older now
    assert prefixes.give_up()
    assert prefixes.find(texts[0]).tokens == 2 * PAGE_TOKENS
    assert prefixes.find(texts[1]).tokens == PAGE_TOKENS  # its last page, before its first


def test_pages_that_nobody_holds_cannot_be_released():
    pages = Pages(2)
    page = pages.take()
    pages.release([page])
    with pytest.raises(ValueError, match="free already"):
        pages.release([page])
