"""What of a prompt is asked in a round, and what its answers are behind that."""

from dsv3_plugin.rollouts.parts import Part, parts_of, together
from dsv3_plugin.rollouts.rollout import UNFINISHED, Rollout

PROMPT = (1, 2)


def answer(tokens: tuple[int, ...], reason: str = UNFINISHED, version: int = 0) -> Rollout:
    return Rollout(
        PROMPT, tokens, (-1.0,) * len(tokens), reason, (version,) * len(tokens)
    )  # fmt: skip


def test_new_answers_are_asked_together() -> None:
    assert parts_of(PROMPT, (), 3, 9, 8, 5) == [Part(PROMPT, 3, 9, 5)]
    assert parts_of(PROMPT, (), 3, 9, 8) == parts_of(PROMPT, (), 3, 9, 8, 20)
    (part,) = parts_of(PROMPT, (), 3, 9, 8)
    assert part.most == 8


def test_each_unfinished_one_is_gone_on_with_by_itself() -> None:
    begun = [answer((3,) * 5), answer((4, 0), "stop"), answer((6,) * 7)]
    first, last = parts_of(PROMPT, begun, 3, 9, 8, 2)
    assert (first.tokens, first.n, first.most) == ((1, 2, *(3,) * 5), 1, 2)
    assert (last.tokens, last.n, last.most) == ((1, 2, *(6,) * 7), 1, 1)
    assert (first.begun, last.begun) == (begun[0], begun[2])
    of_other_rounds = {
        part.seed for seed in range(9) for part in parts_of(PROMPT, begun, 3, seed, 8)
    }
    assert len(of_other_rounds) == 18


def test_one_is_unfinished_where_its_round_ended_it() -> None:
    parts = parts_of(PROMPT, (), 4, 9, 6, 2)
    found = [
        answer((3, 3), "length"),
        answer((3,), "length"),
        answer((3, 0), "stop"),
        answer((3,), "cancelled"),
    ]
    reasons = [one.finish_reason for one in together((), parts, [found], 6)]
    # What is cut before that would be cut there again.
    assert reasons == [UNFINISHED, "length", "stop", "cancelled"]
    assert together((), parts, [[]], 6) == []


def test_each_goes_on_stays_or_is_lost() -> None:
    begun = [answer((3,) * 3), answer((4, 0), "stop"), answer((5,) * 3), answer((6,) * 3),
             answer((7,) * 3)]  # fmt: skip
    parts = parts_of(PROMPT, begun, 5, 9, 5, 2)
    assert len(parts) == 4
    found = [[answer((8, 9), "length", 1)], None, [], [answer((8, 0), "stop", 1)]]
    first, second, third, last = together(begun, parts, found, 5)
    assert (first.tokens, first.versions) == ((3, 3, 3, 8, 9), (0, 0, 0, 1, 1))
    assert (first.prompt, first.finish_reason) == (PROMPT, "length")  # it is as long as it may be
    assert (second, third) == (begun[1], begun[2])
    assert (last.tokens, last.finish_reason) == ((7, 7, 7, 8, 0), "stop")
