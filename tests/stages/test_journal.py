"""Answers that were made before a run ended are read in place of being made again."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.planner.journal import Kept
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rollouts.asked import Asked
from dsv3_plugin.rollouts.groups import Group, Scored
from dsv3_plugin.rollouts.prompts import Prompt
from dsv3_plugin.rollouts.rollout import Rollout
from dsv3_plugin.stages.draws import Drawn, Draws
from dsv3_plugin.stages.journal import Journal, groups_of, settings_of, state_of
from dsv3_plugin.stages.round_numbers import Costs

PROMPTS = [
    Asked(Prompt(Conversation([]), n, ("match",), {}, f"here, line {n}"), f"{n}?", (1, n), "")
    for n in range(32)
]


@pytest.fixture(scope="module", autouse=True)
def world():
    with single_process():
        yield


class Answers:
    """Of a policy: two to each prompt, equal at first where the number of the prompt is odd."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, object]] = []
        order = SimpleNamespace(curriculum=None, load_state_dict=lambda state: None)
        order.state_dict = lambda: {"asked": len(self._given)}
        self._given: list[Asked] = []

        def take(number: int) -> list[Asked]:
            begin = len(self._given)
            self._given += PROMPTS[begin : begin + number]
            return PROMPTS[begin : begin + number]

        order.take = take
        self.data = SimpleNamespace(order=lambda recipe: order)

    def ask(self, model, asked, n: int, seed: object, version: int, begun, most) -> None:
        self._now = asked
        self.asked.append((len(asked), version, seed))

    def asked_for(self) -> tuple[list[Group], Costs]:
        groups = [group_of(one, number) for number, one in enumerate(self._now)]
        return groups, Costs(seconds=1.5, guessed=(3, 2), accepted=(2, 0))


def group_of(one: Asked, number: int) -> Group:
    experts = torch.arange(12, dtype=torch.int32).view(3, 2, 2) if number == 1 else None
    answers = []
    for value in (0.0, float(number % 2 == 0)):
        rollout = Rollout(one.tokens, (5, 6)[: number + 1], (-0.1, -1 / 3)[: number + 1], "stop",
                          (3, 3)[: number + 1], experts)  # fmt: skip
        answers.append(Scored(rollout, "5", value, {"match": value}, {}, bool(value), "\ud800"))
    answers[0] = replace(answers[0], reward=None, problems={"match": "no"}, parts={"match": None})
    if number == 3:
        answers = []  # a server has lost them
    return Group(one.text, "é", one.prompt.where, tuple(answers))


def draws(folder: Path, *overrides: str) -> tuple[Draws, Answers, list[str]]:
    recipe = load_recipe(
        "rl/tiny", ["rollouts.prompts=4", "rollouts.n=2", f"directory={folder}", *overrides]
    )
    policy, told = Answers(), []
    return Draws(recipe, policy, Journal(recipe, RunFolder(folder), told.append)), policy, told


def drawn(own: Draws, step: int = 3) -> Drawn:
    own.begin([], step - 1, step)
    return own.take()


def test_what_is_written_is_what_was_answered() -> None:
    groups = [group_of(one, number) for number, one in enumerate(PROMPTS[:5])]
    again = groups_of(state_of(groups))
    assert again == groups
    assert torch.equal(again[1].answers[0].rollout.experts, groups[1].answers[0].rollout.experts)
    assert groups_of(state_of([])) == []


@pytest.mark.parametrize(("replay", "experts"), [(False, 16), (True, 16), (True, 300)])
def test_a_file_is_as_large_as_it_is_planned_to_be(
    tmp_path: Path, replay: bool, experts: int
) -> None:
    recipe = load_recipe(
        "rl/tiny",
        ["rollouts.prompts=4", "rollouts.n=2", "rollouts.max_tokens=900", "data.seq_length=1024",
         "rollouts.max_prompt_tokens=100", f"grpo.routing_replay={json.dumps(replay)}",
         "model.max_position_embeddings=1024", f"model.num_moe_experts={experts}",
         f"directory={tmp_path}"],
    )  # fmt: skip
    where = len(recipe.model.moe_layers), recipe.model.moe_router_topk
    went = torch.full((999, *where), experts - 1, dtype=torch.int32) if replay else None

    def answer(number: int) -> Scored:
        own = None if went is None else went.clone()
        rollout = Rollout((7,) * 100, (8,) * 900, (-0.5,) * 900, "length", (2,) * 900, own)
        return Scored(rollout, f"{number:04}" * 900, 1.0, {"match": 1.0}, {}, True, "four")

    groups = [Group("1 + 1?", "2", "here", (answer(n), answer(n + 4))) for n in range(4)]
    journal = Journal(recipe, RunFolder(tmp_path), print)
    journal.keep(3, 0, [(1,)], 2, groups, Costs())
    [file] = tmp_path.glob("rollouts/*.pt")
    planned = Kept.of(recipe).bytes
    assert 0.95 * planned < file.stat().st_size < 1.05 * planned + 4096
    [again, *_], _ = journal.read(3, 0, [(1,)], 2)
    assert again.answers == groups[0].answers
    assert not replay or torch.equal(again.answers[0].rollout.experts, went)


def test_a_run_that_goes_on_asks_nobody_what_was_answered(tmp_path: Path) -> None:
    """Dynamic sampling asks twice: the first time too few groups tell answers apart."""
    twice = "rollouts.dynamic_sampling=3"
    first, policy, told = draws(tmp_path, twice)
    whole = drawn(first)
    assert policy.asked == [(4, 2, (1234, 3, 0)), (4, 2, (1234, 3, 1)), (4, 2, (1234, 3, 2))]
    assert not told

    again, policy, told = draws(tmp_path, twice)
    assert drawn(again) == whole
    assert not policy.asked
    [sentence] = told
    assert sentence.startswith("From step 3 on answers that were made before the run ended are")
    assert drawn(again, 5).version == 4  # of which nothing is there
    assert policy.asked[0] == (4, 4, (1234, 5, 0))
    assert len(told) == 1


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("curves.learning_rate=1e-3", True),
        ("rollouts.temperature=0.5", True),
        ("rewards.match.weight=2", True),
        ("rollouts.tokens_in_step=512", False),
        ("training.eval_interval=7", False),
        ("checkpoint.interval=3", False),
    ],
)
def test_answers_of_another_model_or_worth_are_not_taken_up(
    tmp_path: Path, changed: str, again: bool
) -> None:
    first, *_ = draws(tmp_path)
    drawn(first)
    second, policy, _ = draws(tmp_path, changed)
    drawn(second)
    assert bool(policy.asked) == again


def test_what_is_damaged_or_of_other_prompts_is_made_again(tmp_path: Path) -> None:
    first, *_ = draws(tmp_path)
    whole = drawn(first)
    file = tmp_path / "rollouts" / "step_0000003_0.pt"
    file.write_bytes(file.read_bytes()[:100])
    again, policy, _ = draws(tmp_path)
    assert drawn(again) == whole
    assert len(policy.asked) == 1
    other, policy, _ = draws(tmp_path)
    other.order.take(1)
    drawn(other)
    assert len(policy.asked) == 1


def test_what_a_checkpoint_has_goes(tmp_path: Path) -> None:
    own, *_ = draws(tmp_path)
    for step in (3, 5, 7):
        drawn(own, step)
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "latest_checkpointed_iteration.txt").write_text("5")
    drawn(own, 8)
    assert sorted(path.name for path in folder.rollouts.iterdir()) == [
        "step_0000007_0.pt", "step_0000008_0.pt"
    ]  # fmt: skip
    own.forget(7)
    assert len([*folder.rollouts.iterdir()]) == 1


def test_who_answers_decides_nothing(tmp_path: Path) -> None:
    server = ["rollouts.kind=openai", "rollouts.url=http://127.0.0.1:1"]
    alike = [
        settings_of(load_recipe("rl/tiny", [f"directory={tmp_path}/{n}", *server, f"{key}"]))
        for n, key in enumerate(("rollouts.at_once=3", "rollouts.update=buckets"))
    ]
    assert alike[0] == alike[1]
