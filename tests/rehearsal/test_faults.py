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
from tests.rehearsal.test_kinds import KINDS

TOKENS, MICRO_BATCHES, FEW = 64, 4, 2
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
BF16 = (*RECIPE, "precision.dtype=bf16")
"""Where the stage before the last has the final norm, which weighs more beside its layers."""
UPSTREAMS = (
    *BF16,
    "parallel.pipeline=4",
    "parallel.expert=1",
    "pipeline.executor=upstream",
    "pipeline.schedule=1f1b",
    "recompute=[]",
)
MESSAGE = 4 * TOKENS * load_model("tiny").hidden_size
GROWS = "every_micro_batch_leaves_its_gradient"
"""What is seen in more than a few micro-batches."""


def findings(
    ranks: tuple[int, ...], fault: str | None = None, recipe: tuple[str, ...] = RECIPE
) -> list[str]:
    count = MICRO_BATCHES if fault in (None, GROWS) else FEW
    case = StepCase("all", "1f1b_v", micro_batches=40, folded=count)
    places = _planned(recipe)
    requests = [Request("pretrain/tiny", recipe, "cpu", rank, count) for rank in ranks]
    stepped = [
        SteppedRank(case, report, places[report.pipeline_rank], 10**12, TOKENS, MESSAGE)
        for report in forked_child.reports(requests, fault)
    ]
    assert all(rank.report.memory for rank in stepped)
    return [finding.sentence for finding in (*of_ranks(stepped), *between_ranks(stepped))]


def _planned(words: tuple[str, ...]) -> Sequence[RankPlan]:
    cluster = load_cluster("cpu").model_copy(update={"gpus": 4})
    recipe = load_resolved("pretrain/tiny", words, cluster.machine)
    return make_plan(recipe, cluster, cluster.machine).phases[-1].ranks


@pytest.mark.parametrize(
    ("recipe", "ranks"), [(RECIPE, (0, 2, 3)), (BF16, (2,)), (UPSTREAMS, (2,))]
)
def test_without_a_fault_nothing_is_found(recipe: tuple[str, ...], ranks: tuple[int, ...]) -> None:
    assert findings(ranks, recipe=recipe) == []


@pytest.mark.parametrize(
    ("fault", "ranks", "says"),
    [
        ("some_members_alone_issue", (2, 3), "ranks 2 and 3 part at collective"),
        ("some_ranks_make_a_group", (0, 1), "ranks 0 and 1 part at process group"),
        (GROWS, (2,), "rank 2 keeps"),
        ("one_layer_recomputes_nothing", (2,), "stages of like layers keep unlike amounts"),
        ("gradients_are_allocated_twice", (2,), "rank 2 holds"),
        ("messages_are_of_another_type_than_layers", (0, 2), "messages between stages are [64, 1,"),
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


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("sequences_are_divided_among_one_tensor_rank", "finished configuration: Cannot use sequ"),
        ("a_rank_has_more_chunks_than_places", "virtual_pipeline_model_parallel_size conflicts wi"),
        ("a_rank_has_fewer_chunks_than_places", "AssertionError: vp_stage must be passed"),
        ("experts_are_not_divided_evenly", "num_moe_experts (7) should be divisible"),
    ],
)
def test_a_configuration_that_is_wrong_has_upstreams_own_refusal(fault: str, says: str) -> None:
    request = Request("pretrain/tiny", RECIPE, "cpu", 2, MICRO_BATCHES)
    (report,) = forked_child.reports([request], fault)
    (finding,) = report.findings
    assert finding.stops
    assert says in finding.sentence


def test_experts_of_tensor_ranks_whose_sequences_are_whole() -> None:
    request = Request("pretrain/tiny", KINDS["tensor and sequence parallel"], "cpu", 0, 1)
    (report,) = forked_child.reports([request], "tensor_ranks_do_not_divide_sequences")
    (finding,) = report.findings
    assert "tensor parallelismare enabled without also enabling sequence para" in finding.sentence


def test_what_only_the_runs_own_arguments_say_is_looked_at() -> None:
    """A step is rehearsed with other batches and other data."""
    words = (*RECIPE, "megatron_args.num-workers=many")
    requests = [
        Request("pretrain/tiny", words, "cpu", 0, 1, depth) for depth in ("configuration", "step")
    ]
    refused, stepped = forked_child.reports(requests)
    (finding,) = refused.findings
    assert finding.sentence.startswith("Megatron refuses these settings: argument --num-workers")
    assert stepped.findings == ()


def test_gradients_that_are_added_up_in_too_few_bits() -> None:
    words = (*RECIPE, "precision.dtype=bf16")
    fewer = (*words, "megatron_args.grad-reduce-in-bf16=true")
    requests = [Request("pretrain/tiny", said, "cpu", 2, 2) for said in (words, fewer)]
    in_full, rounded = forked_child.reports(requests)
    assert in_full.memory
    assert in_full.rounded == ()
    assert "decoder.layers.2.self_attention.linear_proj.weight" in rounded.rounded
