"""What is said of ranks that took a step."""

import ast
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dsv3_plugin.rehearsal
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.rehearsal.cases import StepCase
from dsv3_plugin.rehearsal.findings import between_ranks, of_ranks
from dsv3_plugin.rehearsal.report import RankReport
from dsv3_plugin.rehearsal.stepped import SteppedRank

CASE = StepCase("all", "zbv", micro_batches=100, folded=12)
CARD, TOKENS, MESSAGE = 80_000_000_000, 4096, 10


def stepped(
    rank: int = 0, stages: tuple[Stage, ...] = (), saving: int = 0, **fields: Any
) -> SteppedRank:
    report = RankReport(rank, 0, **{"memory": {"weights": 1_000_000_000}, **fields})
    needed = {"allocator": 4_000_000_000, "gradients": 1000, "optimizer": 500}
    planned = SimpleNamespace(stages=stages, memory_bytes=needed, moments={"saving": saving})
    return SteppedRank(CASE, report, planned, CARD, TOKENS, MESSAGE)


def sentences(*ranks: SteppedRank) -> list[str]:
    return [finding.sentence for finding in of_ranks(ranks) if finding.stops]


def test_a_rank_that_holds_what_fits_and_waits_for_nothing_in_the_step():
    waits = {"megatron.training.reduce": 1, "megatron.clip": 2}
    assert sentences(stepped(drained=waits, growth=24 * TOKENS, groups=30)) == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"megatrons_groups": 23, "groups_asked_here": 23}, []),
        (
            {"megatrons_groups": 23, "groups_asked_here": 1024},
            [
                "rank 0 has to take part in 1,024 makings of process groups beside Megatron's, one "
                "after the other, and Megatron itself has it in 23 groups"
            ],
        ),
    ],
)
def test_groups_are_bounded(fields: dict[str, int], says: list[str]):
    found = sentences(stepped(**fields))
    assert len(found) == len(says)
    assert all(map(str.startswith, found, says))


def test_a_host_that_waits_in_every_micro_batch():
    (sentence,) = sentences(stepped(3, drained={"dsv3_plugin.dispatch.counts": 12}))
    assert sentence.startswith("the host of rank 3 waits for its device 12 times in a step of 12 ")
    assert "in dsv3_plugin.dispatch.counts" in sentence


def test_what_every_micro_batch_leaves_behind_is_counted_for_all_of_them():
    (sentence,) = sentences(stepped(growth=1_000_000))
    assert "keeps 1.0 MB of every micro-batch after its backward: 100.0 MB at the end" in sentence
    grown, full = sentences(stepped(growth=900_000_000))
    assert "90.0 GB at the end" in grown
    assert full.startswith("rank 0 needs 84.2 GB in zbv, and its device has 80.0 GB")


def test_what_a_save_gathers_has_to_fit_as_well():
    assert sentences(stepped(saving=CARD)) == []
    (sentence,) = sentences(stepped(saving=CARD + 100_000_000))
    assert sentence == (
        "rank 0 needs 80.1 GB while it saves, by the plan, and its device has 80.0 GB"
    )
    (full,) = sentences(stepped(saving=2 * CARD, memory={"weights": CARD}))
    assert "while it saves" not in full


@pytest.mark.parametrize(("kept", "unlike"), [((1000, 1020, 7), 0), ((1000, 1021, 7), 1)])
def test_stages_of_like_layers_keep_alike(kept: tuple[int, ...], unlike: int):
    stages = (Stage(moe=2), Stage(moe=2), Stage(moe=1))
    found = list(between_ranks([stepped(0, stages, kept=kept)]))
    assert len(found) == unlike
    elsewhere = stepped(4, (Stage(moe=2),), kept=(1100,))
    first, *_ = between_ranks([stepped(0, stages, kept=(1000, 1000, 7)), elsewhere])
    assert "1.0 kB on rank 0, 1.1 kB on rank 4" in first.sentence


@pytest.mark.parametrize(
    ("states", "says"),
    [
        ({"weights": 700, "gradients": 1050, "optimizer": 500, "activations": 110}, []),
        ({"gradients": 1051}, ["rank 2 holds 1.1 kB of gradients, and the parameters of its"]),
        ({"optimizer": 1000}, ["rank 2 holds 1.0 kB of optimizer states, and the parameters"]),
        ({"weights": 1000, "logits": 53}, ["rank 2 holds 53 bytes before its step that are"]),
    ],
)
def test_before_its_step_a_rank_holds_what_its_parameters_need(
    states: dict[str, int], says: list[str]
):
    found = sentences(stepped(2, states=states))
    assert len(found) == len(says)
    assert all(map(str.startswith, found, says))


def test_gradients_that_nothing_gives_or_that_are_lost():
    names = ("decoder.final_norm.weight", "output_layer.weight")
    assert sentences(
        stepped(4, without_gradient=names, overwritten=names[:1], rounded=names[1:])
    ) == [
        f"on rank 4 {names[0]} is given no gradient in a step, and so with 1 more parameters",
        f"on rank 4 {names[1]} has its gradient added up in fewer bits than FP32 has, where what a "
        "micro-batch gives is lost beside what the others gave",
        f"on rank 4 {names[0]} has its gradient overwritten by a later micro-batch",
    ]


def test_what_stops_a_run_has_a_way_out():
    """All but a sentence of ours, which has its own, and what only a rehearsal can run into."""
    without = [
        f"{file.stem}: {ast.unparse(call)}"
        for file in Path(dsv3_plugin.rehearsal.__file__).parent.rglob("*.py")
        for call in _findings(file)
        if len(call.args) < 2 and not {"way_out", "stops"} & {word.arg for word in call.keywords}
    ]
    assert without == [
        "child: Finding(str(error).removesuffix('.'))",
        "children: Finding(f'rank {rank} came to no end within {seconds:,} s', of_run=False)",
    ]


def _findings(file: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Finding":
            starred = any(word.arg is None for word in node.keywords)
            if not starred:  # read from JSON
                yield node
