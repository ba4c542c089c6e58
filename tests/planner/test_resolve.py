"""What a recipe leaves open is closed for whoever runs it, plans it or prints its arguments."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.memory.of_recipe import rank_memories
from dsv3_plugin.planner.resolve import load_resolved, resolve
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.planner.stages import Stage, stages_of
from dsv3_plugin.planner.time.recipe_steps import RecipeSteps
from dsv3_plugin.planner.time.stage_times import stage_times
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.recipe.stage_layout import expand
from tests.recipe.piped import PIPED

GPU_SERVER = Machine(gpus=8, transformer_engine=True)
LAPTOP = Machine(gpus=0, transformer_engine=False)
BALANCED = "pipeline.layout=balanced"


def test_what_leaves_nothing_open_is_the_same():
    recipe = load_recipe("pretrain/deepseek-v3", [], GPU_SERVER)
    assert resolve(recipe, GPU_SERVER) is recipe


def test_an_open_layout_is_not_guessed():
    with pytest.raises(AssertionError, match="open"):
        _ = load_recipe("pretrain/deepseek-v3", [BALANCED]).stage_layout


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["pipeline={schedule: 1f1b, ramp_schedule: null}"],
        ["pipeline={schedule: search, ramp_schedule: null}"],
        ["pipeline={schedule: dualpipe, ramp_schedule: null}", "curves.batch_size=15360"],
        [
            "pipeline={schedule: interleaved, virtual_stages: 3, ramp_schedule: null}",
            "curves.batch_size=16384",
        ],
        ["parallel.pipeline=8", "model.mtp_num_layers=null"],
    ],
    ids=["dualpipe_v", "1f1b", "search", "dualpipe", "interleaved", "without mtp"],
)
def test_ranks_have_equal_work(overrides):
    """Where memory is no matter: within 3 % of the mean, or 1 % of what whole layers allow."""
    open_recipe = load_recipe("pretrain/deepseek-v3", [BALANCED, *overrides], GPU_SERVER)
    cluster = load_cluster("h800").model_copy(update={"memory_gb": 1000.0})
    recipe = resolve(open_recipe, GPU_SERVER, cluster)
    assert recipe == resolve(open_recipe, GPU_SERVER, cluster)
    assert recipe.pipeline.model_copy(update={"layout": "balanced"}) == open_recipe.pipeline
    setting = Setting.of(recipe, cluster, GPU_SERVER)
    stages = stages_of(recipe.model, recipe.stage_layout)
    placement = recipe.placement(recipe.pipeline.schedule)
    total = [
        sum(stage_times(setting, cluster, stages[placement.model_stage(s)]).total for s in held)
        for held in placement.chunks
    ]
    assert len(stages) == placement.depth
    within_the_mean = max(total) <= 1.03 * sum(total) / len(total)
    assert within_the_mean or max(total) <= 1.01 * _bound(setting, cluster, placement)


def _bound(setting, cluster, placement):
    """What the slowest rank has at least: layers with experts are whole, the others left out.

    Ranks that face each other in DualPipe hold the same stages, and count once. A stage between the
    first and the last holds one layer at least, so the rank of the last may hold some.
    """
    held = {frozenset(map(placement.model_stage, chunks)) for chunks in placement.chunks}
    layer = stage_times(setting, cluster, Stage(moe=1)).total
    mtp = setting.model.mtp_num_layers or 0
    last = stage_times(setting, cluster, Stage(mtp=mtp, head=True)).total
    (beside,) = (stages for stages in held if placement.depth - 1 in stages)
    least = last + layer * sum(0 < stage < placement.depth - 1 for stage in beside)
    candidates = [n * layer for n in range(1, 59)] + [last + n * layer for n in range(59)]
    return min(
        most
        for most in candidates
        if most >= least * (1 - 1e-9)
        and (len(held) - 1) * int(most / layer + 1e-9) + int((most - last) / layer + 1e-9) >= 58
    )


def test_what_is_balanced_is_in_memory():
    """The recipe of the report leaves little room on its devices."""
    cluster = load_cluster("h800")
    recipe = resolve(
        load_recipe("pretrain/deepseek-v3", [BALANCED], GPU_SERVER), GPU_SERVER, cluster
    )
    steps = RecipeSteps(recipe, Setting.of(recipe, cluster, GPU_SERVER), cluster)
    held = [memory.total for memory in rank_memories(steps, 15360)]
    assert 0.6 * cluster.memory_bytes < max(held) <= cluster.memory_bytes


def test_what_fits_in_no_layout_is_a_sentence():
    cluster = load_cluster("h800").model_copy(update={"memory_gb": 30.0})
    recipe = load_recipe("pretrain/deepseek-v3", [BALANCED], GPU_SERVER)
    with pytest.raises(UserError) as caught:
        resolve(recipe, GPU_SERVER, cluster)
    sentence = str(caught.value)
    assert "pipeline.layout: balanced finds none that fits into the 30.0 GB of" in sentence
    assert "dsv3 plan names the nearest change" in sentence
    # A plan shows what is missing where.
    assert resolve(recipe, GPU_SERVER, cluster, must_fit=False).pipeline.layout != "balanced"


def test_a_run_on_the_cpu_is_balanced_for_one():
    overrides = [*PIPED, BALANCED]
    assert load_recipe("pretrain/tiny", overrides).cluster_on(GPU_SERVER) == "cpu"
    recipe = load_resolved("pretrain/tiny", overrides, LAPTOP)
    assert expand(recipe.stage_layout).count("t") == recipe.model.num_layers
    again = load_resolved("pretrain/tiny", overrides, LAPTOP)
    assert recipe.to_yaml() == again.to_yaml()
    assert "layout: balanced" not in recipe.to_yaml()


def test_a_cluster_is_a_name_or_a_file_beside_the_recipe(tmp_path):
    assert load_recipe("pretrain/deepseek-v3").cluster_on(GPU_SERVER) == "h800"
    assert load_recipe("pretrain/deepseek-v3", ["cluster=null"]).cluster_on(LAPTOP) == "h100"
    (tmp_path / "mine.yaml").write_text("{}\n")
    (tmp_path / "run.yaml").write_text("base: pretrain/deepseek-v3\ncluster: mine.yaml\n")
    assert load_recipe(tmp_path / "run.yaml").cluster == str(tmp_path / "mine.yaml")
    with pytest.raises(UserError, match="h801"):
        load_resolved("pretrain/deepseek-v3", [BALANCED, "cluster=h801"], GPU_SERVER)


def test_what_becomes_of_it_is_held_to_the_rules():
    """Of upstream's own flag, a layout is said twice."""
    flag = "megatron_args={pipeline-model-parallel-layout: balanced}"
    with pytest.raises(UserError, match=r"contradicts pipeline\.layout, which is E"):
        load_resolved("pretrain/tiny", [*PIPED, BALANCED, flag], LAPTOP)
