"""Ways to divide and to run a model that nothing else here steps: a rank of each takes its step."""

import pytest

from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.memory.activations import stage_bytes
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage
from dsv3_plugin.rehearsal.report import Request
from tests.rehearsal import forked_child

SMALL = (
    "parallel.processes=4",
    "parallel.expert=2",
    "model.num_layers=4",
    "model.moe_layer_freq=[0,1,1,1]",
    "data.seq_length=32",
    "training.micro_batch_size=1",
)
PIPELINE = (*SMALL, "parallel.pipeline=2")
OURS = (*PIPELINE, "pipeline.executor=ours")
KINDS = {
    "tensor and sequence parallel": (*SMALL, "parallel.tensor=2"),
    "zero off": (*OURS, "parallel.zero1=false"),
    "upstreams interleaved": (
        *PIPELINE, "pipeline.executor=upstream", "pipeline.schedule=interleaved",
        "pipeline.virtual_stages=2",
    ),
    "zb1p": (*OURS, "pipeline.schedule=zb1p"),
    "zbv": (*OURS, "pipeline.schedule=zbv"),
    "dualpipe": (*OURS, "pipeline.schedule=dualpipe"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_takes_its_step(kind: str) -> None:
    (report,) = forked_child.reports([Request("pretrain/tiny", KINDS[kind], "cpu", 0, 4)])
    assert report.findings == ()
    assert 0 < report.megatrons_groups <= report.groups
    assert report.groups - report.megatrons_groups <= report.groups_asked_here
    assert report.groups_asked_here < report.megatrons_groups
    assert sum(report.memory.values()) > sum(report.states.values()) > 0
    assert report.without_gradient == report.overwritten == ()


@pytest.mark.long
def test_a_rank_takes_its_step_on_packs() -> None:
    """Where samples end is read by the host, and so it is known."""
    ours = ("parallel.processes=4", "parallel.context=2", "pipeline.schedule=dualpipe_v")
    divided = (*ours, "curves.batch_size=16", "parallel.expert=2", "parallel.pipeline=2")
    (report,) = forked_child.reports([Request("sft/tiny", divided, "cpu", 0, 4)])
    assert report.findings == ()
    assert sum(report.memory.values()) > sum(report.states.values()) > 0
    assert report.without_gradient == report.overwritten == ()


def test_a_shared_expert_in_parts_keeps_the_tokens_of_all_tensor_parallel_ranks() -> None:
    """Its products otherwise gather for themselves; as much more is planned."""
    kept, planned = [], []
    for hidden in ("true", "false"):
        words = (
            *KINDS["tensor and sequence parallel"], "dispatch.kind=two_hop",
            f"dispatch.hide_shared_expert={hidden}",
        )  # fmt: skip
        (report,) = forked_child.reports([Request("pretrain/tiny", words, "cpu", 0, 1)])
        kept.append(report.memory["activations"])
        cluster = load_cluster("cpu").model_copy(update={"gpus": 4})
        recipe = load_resolved("pretrain/tiny", words, cluster.machine)
        setting = Setting.of(recipe, cluster, cluster.machine)
        planned.append(stage_bytes(setting, Stage(moe=3, mtp=1)).layers)
    # Four layers have one: in each 32 tokens of 192 values.
    assert kept[0] - kept[1] == planned[0] - planned[1] == 4 * 32 * 192 * 4
