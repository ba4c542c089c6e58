"""Faults put into the code of a run: the rehearsal finds each, and knows none of them."""

from collections.abc import Sequence

import pytest

from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.plan import RankPlan
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.rehearsal.cases import StepCase
from dsv3_plugin.rehearsal.findings import between_ranks, of_ranks
from dsv3_plugin.rehearsal.report import Request
from dsv3_plugin.rehearsal.stepped import SteppedRank
from tests.rehearsal import forked_child

TOKENS, MICRO_BATCHES = 64, 4
RECIPE = (
    "parallel.processes=4",
    "parallel.pipeline=2",
    "parallel.expert=2",
    "pipeline.executor=ours",
    "pipeline.schedule=1f1b_v",
    "pipeline.layout=Et|t|t|mL",
    "model.num_layers=3",
    "model.moe_layer_freq=[0,1,1]",
    "recompute=[norms,mla_up_proj]",
    f"data.seq_length={TOKENS}",
    "training.micro_batch_size=1",
)
ENDS = (*RECIPE, "pipeline.schedule=1f1b", "pipeline.layout=Et|ttmL")
"""The first stage and the last lie on two ranks, which share the embedding."""
MESSAGE = 4 * TOKENS * load_model("tiny").hidden_size
CASE = StepCase("all", "1f1b_v", micro_batches=40, folded=MICRO_BATCHES)


def findings(
    ranks: tuple[int, ...], fault: str | None = None, recipe: tuple[str, ...] = RECIPE
) -> list[str]:
    places = _planned(recipe)
    requests = [Request("pretrain/tiny", recipe, "cpu", rank, MICRO_BATCHES) for rank in ranks]
    stepped = [
        SteppedRank(CASE, report, places[report.pipeline_rank], 10**12, TOKENS, MESSAGE)
        for report in forked_child.reports(requests, fault)
    ]
    assert all(rank.report.memory for rank in stepped)
    return [finding.sentence for finding in (*of_ranks(stepped), *between_ranks(stepped))]


def _planned(words: tuple[str, ...]) -> Sequence[RankPlan]:
    cluster = load_cluster("cpu").model_copy(update={"gpus": 4})
    recipe = load_resolved("pretrain/tiny", words, cluster.machine)
    return make_plan(recipe, cluster, cluster.machine).phases[-1].ranks


def test_without_a_fault_nothing_is_found() -> None:
    assert findings((0, 2, 3)) == []


@pytest.mark.parametrize(
    ("fault", "ranks", "says"),
    [
        ("some_members_alone_issue", (2, 3), "ranks 2 and 3 part at collective"),
        ("some_ranks_make_a_group", (0, 1), "ranks 0 and 1 part at process group"),
        ("every_micro_batch_leaves_its_gradient", (2,), "rank 2 keeps"),
        ("one_layer_recomputes_nothing", (2,), "stages of like layers keep unlike amounts"),
        ("gradients_are_allocated_twice", (2,), "rank 2 holds"),
        ("a_parameter_is_used_by_nobody", (2,), "on rank 2 decoder.layers.3.scale is given no gra"),
    ],
)  # fmt: skip
def test_a_fault_is_found(fault: str, ranks: tuple[int, ...], says: str) -> None:
    found = findings(ranks, fault)
    assert any(sentence.startswith(says) for sentence in found), found


def test_embeddings_that_nobody_sums() -> None:
    (found,) = findings((0, 2), "the_embeddings_stay_apart", ENDS)
    assert found == (
        "ranks 0 and 2 both hold embedding.word_embeddings.weight, and do not sum its gradient"
    )
