"""What a round says when something is wrong with it, and what a checkpoint keeps of it."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.errors import UserError
from dsv3_plugin.grpo.mismatch import Mismatch, together
from dsv3_plugin.recipe.rl import Grpo
from dsv3_plugin.rollouts.groups import Group, Scored
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.rollouts.rows import Text
from dsv3_plugin.stages import rounds as rounds_of_a_run
from dsv3_plugin.stages.draws import Drawn, Draws
from dsv3_plugin.stages.learning import Learning, switches_of
from dsv3_plugin.stages.round_numbers import Costs, numbers_of
from dsv3_plugin.stages.rounds import MiniBatch, Rounds


@pytest.fixture(scope="module", autouse=True)
def world():
    with single_process():
        yield


def rounds(
    told: list[str], found: Mismatch = Mismatch(0.5, 0.1, 0.01, 0.2), age: int = 0, **grpo
) -> Rounds:
    recipe = SimpleNamespace(grpo=Grpo(**grpo), mismatch_limit=1e-5)
    folder = SimpleNamespace(samples=Path("samples"))
    run = SimpleNamespace(recipe=recipe, folder=folder, tell=told.append)
    draws = SimpleNamespace(forget=lambda step: told.append(f"forgets {step}"))
    hook = Rounds(run, draws, SimpleNamespace(mismatch=lambda: found), None)
    hook._mini = MiniBatch([], [], first=True, age=age)
    return hook


def step(iteration: int) -> SimpleNamespace:
    return SimpleNamespace(iteration=iteration, numbers={})


@pytest.mark.parametrize("what", ["warn", "correct"])
def test_a_mismatch_is_said_once_and_told_at_every_round(what: str) -> None:
    told: list[str] = []
    hook = rounds(told, on_mismatch=what)
    for number in (1, 2):
        hook.after_backward(seen := step(number))
        assert seen.numbers == {
            "rl/mismatch_max": 0.5, "rl/mismatch_mean": 0.1, "rl/mismatch_kl": 0.01,
            "rl/mismatch_beyond_clip": 0.2,
        }  # fmt: skip
    [sentence] = told
    assert sentence.startswith("In step 1 the engine's log-probabilities differ")
    assert (switches_of(Grpo(on_mismatch=what)).correction is not None) == (what == "correct")


def test_a_mismatch_stops_the_run_before_the_step() -> None:
    with pytest.raises(UserError, match=r"step 7: .* up to 0\.5 nats .*: the step is not taken"):
        rounds(told := [], on_mismatch="stop").after_backward(step(7))
    assert told == ["forgets 7"]  # who goes on has it asked for again


def test_what_is_within_the_limit_is_not_said() -> None:
    told: list[str] = []
    near = Mismatch(1e-6, 1e-7, 0.0, 0.0)
    rounds(told, near, on_mismatch="stop").after_backward(step(1))
    assert not told


def test_of_older_weights_it_is_told_alone() -> None:
    told: list[str] = []
    rounds(told, age=2, on_mismatch="warn").after_backward(seen := step(3))
    assert seen.numbers["rl/mismatch_max"] == 0.5
    assert not told
    assert switches_of(Grpo(), older=True).correction is not None


def texts(*logs: float) -> list[Text]:
    return [Text((1,), (2,) * 3, (log,) * 3) for log in logs]


def test_answers_of_later_steps_are_compared_before_the_first(monkeypatch) -> None:
    """One of the last mini-batch of three is far from what the engine said of it."""
    found = [[-1.0] * 3, [-2.0] * 3, [-3.0] * 3, [-4.0, -4.0, -4.75]]
    monkeypatch.setattr(rounds_of_a_run.log_probs, "of_texts", lambda *_: found)
    hook = rounds([], Mismatch(0.25, 0.125, 0.0, 0.0), mini_batches=3, on_mismatch="stop")
    learning = Learning(switches_of(Grpo()))
    learning.mismatch, learning.tokens = hook._learning.mismatch, 3
    hook._learning = learning
    parts = [MiniBatch(some, [], False) for some in (texts(-1.0), texts(-2.0, -3.0), texts(-4.0))]
    hook._add_old(SimpleNamespace(model=None), parts)
    assert [text.old for part in parts for text in part.texts] == found
    with pytest.raises(UserError, match=r"up to 0\.75 nats \(mean 0\.0938\)"):
        hook.after_backward(seen := step(1))
    numbers = seen.numbers
    assert numbers["rl/mismatch_max"] == 0.75
    assert numbers["rl/mismatch_mean"] == pytest.approx((3 * 0.125 + 0.75) / 12)
    assert numbers["rl/mismatch_beyond_clip"] == pytest.approx(1 / 12)  # exp(-0.75) < 0.8


@pytest.mark.parametrize(("old", "epochs", "taken"), [
    ("engine", 1, [-1.0, -2.0]), ("engine", 2, [-1.0, -2.0]),
    ("trainer", 2, [-1.5, -2.5]), ("trainer", 1, None),
])  # fmt: skip
def test_what_ratios_are_taken_to(monkeypatch, old: str, epochs: int, taken) -> None:
    """The engine's log-probabilities too, where a round is one step."""
    monkeypatch.setattr(rounds_of_a_run.log_probs, "of_texts", lambda *_: [[-1.5], [-2.5]])
    recipe = SimpleNamespace(grpo=Grpo(old=old, epochs=epochs), updates=epochs)
    hook = Rounds(SimpleNamespace(recipe=recipe, folder=SimpleNamespace()), None, None, None)
    hook._reference, hook._learning = None, Learning(switches_of(Grpo()))
    logs = (-1.0, -2.0)
    answers = [
        Scored(Rollout((1,), (2,), (log,), "stop", (0,)), "", log, {}, {}, False, "")
        for log in logs
    ]
    group = Group("", "", "", tuple(answers))
    minis = hook._divided(SimpleNamespace(model=None), [group], 0)
    assert [mini.first for mini in minis] == [True, False][:epochs]
    for mini in minis:
        found = [text.old and text.old[0] for text in mini.texts]
        assert found == (taken or [None, None])


def test_ratios_to_what_sampled_have_nothing_to_correct() -> None:
    assert switches_of(Grpo(old="engine"), older=True).correction is None
    assert switches_of(Grpo(), older=True).correction is not None


def test_ranks_are_weighed_by_their_tokens() -> None:
    found = together([(Mismatch(0.5, 0.1, 0.0, 1.0), 1), (Mismatch(0.2, 0.0, 0.4, 0.0), 3)])
    assert found == Mismatch(0.5, pytest.approx(0.025), pytest.approx(0.3), 0.25)
    assert together([]) == Mismatch(0.0, 0.0, 0.0, 0.0)


def test_answers_that_wait_keep_their_experts_in_a_checkpoint() -> None:
    """Those of the round that comes next, and those of steps of this one."""
    experts = torch.arange(12, dtype=torch.int32).view(2, 3, 2)
    rollout = Rollout((1, 2), (3,), (-1.0,), "stop", (4,), experts)
    scored = Scored(rollout, "3", 1.0, {"match": 1.0}, {}, True, "3")
    recipe = SimpleNamespace(grpo=Grpo(), rollouts=SimpleNamespace(kind="embedded"))

    def rounds_of() -> Rounds:
        run = SimpleNamespace(recipe=recipe, folder=SimpleNamespace())
        return Rounds(run, Draws(recipe, None, None), None, None)

    before, after = rounds_of(), rounds_of()
    before._draws._ready = Drawn([Group("a", "b", "c", (scored,))], [0], 4, Costs(lost=1))
    before._waiting.append(MiniBatch([Text.of(rollout)], [0.5], first=True, age=2))
    stored = io.BytesIO()
    torch.save(before.state_dict(), stored)
    stored.seek(0)
    after.load_state_dict(torch.load(stored))  # of plain types alone, as upstream reads it
    drawn = after._draws.take()
    assert drawn == before._draws.take()
    assert torch.equal(drawn.groups[0].answers[0].rollout.experts, experts)
    [mini] = after._waiting
    assert mini == before._waiting[0]
    assert torch.equal(mini.texts[0].experts, experts)


def group(*rewards: float | None) -> Group:
    rollout = Rollout((1,), (2,), (-1.0,), "stop", (0,))
    answers = tuple(Scored(rollout, "", reward, {}, {}, False, "") for reward in rewards)
    return Group("", "", "", answers)


def test_equal_rewards_for_long_are_said_with_the_advice() -> None:
    told: list[str] = []
    hook = rounds(told)
    for _ in range(9):
        hook._say_silence([group(0.25, 0.25), group(0.75, None, 0.75)])
    hook._say_silence([group(0.0, 0.0), group(0.0, 1.0)])
    assert not told
    for _ in range(25):
        hook._say_silence([group(0.25, 0.25), group(0.75, None, 0.75)])
    [sentence] = told
    assert "For 10 rounds all answers to a prompt have had equal rewards (mean 0.5)" in sentence
    assert "rollouts.n" in sentence
    assert str(Path("samples")) in sentence


def test_why_answers_could_not_be_judged_is_said_once_and_counted_always() -> None:
    told: list[str] = []
    hook = rounds(told)

    def answered(problem: str) -> Group:
        rollout = Rollout((1,), (2,), (-1.0,), "stop", (0,))
        failed = Scored(rollout, "", None, {"style": None}, {"style": problem}, False, "")
        return Group("", "", "", (failed, *group(0.0, 1.0).answers))

    busy = [answered(f"the service answered with status 500: {n}") for n in "abcde"]
    hook._say_unjudged(1, [*busy, group(1.0)])
    hook._say_unjudged(2, [answered("the service answered with status 500: f"), *busy])
    hook._say_unjudged(3, [group(0.0, 1.0)])
    assert told == [
        "In step 1 5 of 16 answers could not be judged, and are not learned from: 5 by style (the "
        "service answered with status 500: a)."
    ]
    hook._say_unjudged(4, [answered("the service cannot be reached")])
    assert told[1].startswith("In step 4 1 of 3 answers could not be judged, and are not learned")
    assert numbers_of(busy, busy, Costs())["rl/unjudged_style"] == 5
    assert "rl/unjudged_style" not in numbers_of([group(1.0)], [], Costs())


def test_answers_that_never_end_are_said_with_the_advice() -> None:
    told: list[str] = []
    hook = rounds(told)
    hook._recipe.rollouts = SimpleNamespace(max_tokens=4096)

    def answered(*reasons: str) -> Group:
        each = (Rollout((1,), (2,), (-1.0,), reason, (0,)) for reason in reasons)
        answers = tuple(Scored(rollout, "", 0.0, {}, {}, False, "") for rollout in each)
        return Group("", "", "", answers)

    for _ in range(9):
        hook._say_unended([answered("length", "stop"), answered("length", "length")])
    hook._say_unended([answered("length", "stop", "stop")])
    assert not told
    for _ in range(25):
        hook._say_unended([answered("length", "stop")])
    [sentence] = told
    assert sentence.startswith(
        "For 10 rounds half of the answers or more had no end within rollouts.max_tokens 4,096 "
        "(now 1 of 2): raise that, make long answers dear by the reward length, or look whether "
    )
    assert str(Path("samples")) in sentence


def test_an_epoch_is_the_round_again(monkeypatch) -> None:
    """In two mini-batches, each to the log-probabilities of before the first; compared once."""
    asked = []
    monkeypatch.setattr(
        rounds_of_a_run.log_probs, "of_texts", lambda *_: asked.append(1) or [[-1.5]] * 8
    )
    recipe = SimpleNamespace(grpo=Grpo(mini_batches=2, epochs=3), updates=6)
    hook = Rounds(SimpleNamespace(recipe=recipe, folder=SimpleNamespace()), None, None, None)
    hook._reference, hook._learning = None, Learning(switches_of(Grpo()))
    minis = hook._divided(SimpleNamespace(model=None), [group(0.0, 1.0) for _ in range(4)], 0)
    assert len(asked) == 1
    assert [mini.first for mini in minis] == [True, *[False] * 5]
    assert [mini.texts for mini in minis] == [minis[0].texts, minis[1].texts] * 3
    assert all(text.old == [-1.5] for mini in minis for text in mini.texts)
    assert {len(mini.texts) for mini in minis} == {4}
