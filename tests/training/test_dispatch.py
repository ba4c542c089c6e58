"""The dispatch in a run: what it counts, what it says, what it refuses before any rank starts."""

import importlib.util

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.supervise import train
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.training.prepare import dispatch_note
from tests.small_runs import Command, records


def test_a_step_after_an_evaluation_sends_as_much_as_any_other(trained):
    # Upstream's all-to-all sends a row per (token, expert), wherever the experts are.
    steps = [line for line in records(trained.folder) if "traffic" in line]
    per_sequence = {
        sum(link["bytes"] for link in line["traffic"].values()) / line["batch_size"]
        for line in steps
    }
    assert len(steps) == 12
    assert len(per_sequence) == 1


def test_groups_that_cross_nodes_are_said(recipe, tmp_path):
    overrides = [
        f"directory={tmp_path}/run", "dispatch={kind: two_hop, ranks_per_node: 1}",
        "training.steps=1", "training.eval_interval=null",
    ]  # fmt: skip
    assert dispatch_note(load_recipe(recipe, overrides), {}) is None  # two groups a node
    overrides += ["model.moe_router_num_groups=null", "model.moe_router_group_topk=null"]
    sentence = dispatch_note(load_recipe(recipe, overrides), {})
    assert "Dispatch: routing without groups over 2 nodes" in sentence
    assert sentence.endswith("set moe_router_num_groups to a multiple of 2.")
    ended = Command.forked("train", recipe, *overrides).end()
    assert ended.code == 0, ended.output
    assert ended.output.count(sentence) == 1


def test_launched_nodes_are_those_of_the_note(recipe):
    overrides = ["dispatch.kind=two_hop", "parallel={processes: 8, expert: 8}"]
    wanted = load_recipe(recipe, [*overrides, "curves.batch_size=16"])
    assert dispatch_note(wanted, {"LOCAL_WORLD_SIZE": "8"}) is None
    assert "4 routing groups over 8 nodes" in dispatch_note(wanted, {"LOCAL_WORLD_SIZE": "1"})
    with pytest.raises(UserError, match="or give the number"):
        dispatch_note(wanted, {})


@pytest.mark.parametrize(("kind", "module"), [("deepep", "deep_ep"), ("hybridep", "hybrid_ep_cpp")])
def test_absent_kernels_are_named_before_ranks_start(recipe, tmp_path, monkeypatch, kind, module):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is here")
    monkeypatch.setattr(Machine, "here", lambda: Machine(gpus=2, transformer_engine=False))
    overrides = [f"directory={tmp_path}/run", "host=gpu", f"dispatch.kind={kind}"]
    with pytest.raises(UserError, match=f"{kind} needs the Python package deep_ep"):
        train(str(recipe), overrides)
    assert not (tmp_path / "run").exists()
    assert Command("args", recipe, *overrides).end().code == 0  # which may be for another machine
