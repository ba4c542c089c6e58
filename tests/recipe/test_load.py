"""Recipes: shipped ones, inheritance, overrides, rules and sentences."""

from types import SimpleNamespace

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.pipeline import from_recipe
from dsv3_plugin.pipeline.from_recipe import schedules_of
from dsv3_plugin.planner.stage_costs import even_layers
from dsv3_plugin.recipe import yaml_text
from dsv3_plugin.recipe.load import (
    load_model,
    load_recipe,
    load_recipe_or_model,
    merge,
    shipped_folder,
)
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.schema import Recipe
from dsv3_plugin.recipe.stage_layout import expand
from dsv3_plugin.schedules.actions import csv_text
from dsv3_plugin.schedules.placement import placement_of, stage_placement
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.zbv import zbv

RECIPES = sorted(
    path.relative_to(shipped_folder()).with_suffix("").as_posix()
    for path in shipped_folder().rglob("*.yaml")
    if path.parent.name != "models"
)
LAPTOP = Machine(gpus=0, transformer_engine=False)
GPU_SERVER = Machine(gpus=8, transformer_engine=True)
BILLION, TRILLION = 10**9, 10**12


@pytest.mark.parametrize("name", RECIPES)
def test_complete_yaml_reads_back_as_the_same_recipe(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    again = load_recipe(tmp_path / "recipe.yaml")
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert again.curves == recipe.curves


def test_deepseek_v3_is_the_report():
    recipe = load_recipe("pretrain/deepseek-v3")
    assert recipe.training.tokens == 14_800 * BILLION
    assert recipe.parallel.processes == 2048
    assert (recipe.parallel.pipeline, recipe.parallel.expert) == (16, 64)
    assert recipe.data_parallel == 128
    assert recipe.parallel.zero1
    # Batch: 3072 → 15360 over the first 469B tokens.
    batch = recipe.batch_schedule.batch
    assert batch(0) == 3072
    assert batch(469 * BILLION // 2) == pytest.approx((3072 + 15360) / 2, abs=128)
    assert batch(469 * BILLION - 10**9) < 15360
    assert batch(469 * BILLION + 4096) == batch(14 * TRILLION) == 15360
    # Learning rate: 2000 steps up, flat to 10T, cosine over 4.3T, 333B, 167B.
    rate = recipe.curves.learning_rate
    warm = recipe.batch_schedule.tokens_after(0, 2000)
    assert 2000 * 3072 * 4096 < warm < 2000 * 4096 * 4000
    assert rate.boundaries == [0, warm, 10 * TRILLION, 14_300 * BILLION, 14_633 * BILLION,
                               14_800 * BILLION]  # fmt: skip
    assert (rate(0), rate(warm), rate(10 * TRILLION)) == (0.0, 2.2e-4, 2.2e-4)
    assert rate(warm // 2) == pytest.approx(1.1e-4, rel=1e-6)
    assert rate(12_150 * BILLION) == pytest.approx((2.2e-4 + 2.2e-5) / 2)
    assert (rate(14_400 * BILLION), rate(14_700 * BILLION)) == (2.2e-5, 7.3e-6)
    gamma, weight = recipe.curves.router_bias_speed, recipe.curves.mtp_weight
    assert (gamma(0), gamma(14_300 * BILLION - 1), gamma(14_300 * BILLION)) == (1e-3, 1e-3, 0.0)
    assert (weight(0), weight(10 * TRILLION - 1), weight(10 * TRILLION)) == (0.3, 0.3, 0.1)
    # Pretraining knows no YaRN.
    assert recipe.model.rope_type == "rope"
    assert recipe.model.max_position_embeddings == recipe.data.seq_length == 4096
    assert recipe.data.fim_rate == 0.1
    assert recipe.precision.fp8.recipe == "blockwise"
    assert recipe.precision.moments == "bf16"
    assert {"norms", "mla_up_proj"} <= set(recipe.recompute)
    assert recipe.pipeline_stages == 32
    # The layout is the one that gives devices equal work.
    layers = [stage.count("t") for stage in expand(recipe.pipeline.layout).split("|")]
    assert layers == even_layers(recipe.model, stage_placement(16, 2))


def test_tiny_runs_on_two_processes():
    recipe = load_recipe("pretrain/tiny")
    assert (recipe.parallel.processes, recipe.parallel.expert) == (2, 2)
    assert recipe.data.seq_length == 256
    assert recipe.total_tokens % recipe.data.seq_length == 0
    assert recipe.training.eval_interval
    assert recipe.resolved_backend(GPU_SERVER) == "local"
    assert not recipe.on_gpu(GPU_SERVER)


def test_steps_and_tokens_are_the_same_run():
    by_steps = load_recipe("pretrain/tiny", ["training.steps=50"])
    tokens = by_steps.total_tokens
    by_tokens = load_recipe(
        "pretrain/tiny", ["training.steps=null", f"training.tokens={tokens - 1}"]
    )
    assert by_tokens.total_steps == 50
    assert by_tokens.total_tokens == tokens


def test_auto_looks_at_the_machine():
    recipe = load_recipe("pretrain/tiny", ["host=auto", "backend=auto"])
    assert recipe.resolved_backend(GPU_SERVER) == "transformer_engine"
    for gpus, transformer_engine in [(8, False), (0, True)]:
        assert recipe.resolved_backend(Machine(gpus, transformer_engine)) == "local"


def test_what_auto_finds_is_held_to_the_rules_and_not_written_down():
    wants = ["host=auto", "backend=auto", "model.hidden_size=62"]
    assert load_recipe("pretrain/tiny", wants, GPU_SERVER).backend == "auto"
    assert load_recipe("pretrain/tiny", wants).backend == "auto"
    with pytest.raises(UserError) as caught:
        load_recipe("pretrain/tiny", wants, LAPTOP)
    assert "hidden_size 62 is not a multiple of 4" in str(caught.value)
    assert str(caught.value).endswith("in fp32 (backend: auto finds local on this machine).")
    laptop = load_recipe("pretrain/tiny", ["host=auto", "backend=auto"], LAPTOP)
    assert "backend: auto" in laptop.to_yaml()


def test_a_recipe_says_its_stage(tmp_path):
    assert load_recipe("pretrain/tiny").stage == "pretrain"
    written = yaml_text.parse(load_recipe("pretrain/tiny").to_yaml(), "here")
    assert written.pop("stage") == "pretrain"  # as recipes did not, once
    (tmp_path / "recipe.yaml").write_text(yaml_text.dump(written))
    assert load_recipe(tmp_path / "recipe.yaml") == load_recipe("pretrain/tiny")
    for stage in ("distil", "[1]"):
        with pytest.raises(UserError, match=r"there is no stage .*; the stages are pretrain\.$"):
            load_recipe("pretrain/tiny", [f"stage={stage}", "rollouts.n=3"])


def test_base_merges_key_by_key(tmp_path):
    (tmp_path / "shape.yaml").write_text(load_model("tiny").to_yaml())
    (tmp_path / "parent.yaml").write_text(
        "base: pretrain/tiny\nmodel: shape.yaml\ntraining: {seed: 7}\n"
        "curves: {mtp_weight: 0.2}\ndirectory: elsewhere\n"
    )
    folder = tmp_path / "below"
    folder.mkdir()
    (folder / "child.yaml").write_text(
        "base: ../parent.yaml\nmodel: {num_layers: 2, moe_layer_freq: '[0]+[1]'}\n"
        "training: {eval_steps: 3}\n"
    )
    child = load_recipe(folder / "child.yaml", ["training.log_interval=2"])
    assert child.name == "child"
    assert child.directory == "runs/child"
    assert (child.training.seed, child.training.eval_steps, child.training.log_interval) == (
        7, 3, 2,
    )  # fmt: skip
    assert child.training.micro_batch_size == load_recipe("pretrain/tiny").training.micro_batch_size
    assert child.curves.mtp_weight(0) == 0.2
    assert (child.model.num_layers, child.model.hidden_size) == (2, load_model("tiny").hidden_size)


def test_a_recipe_cannot_build_on_itself(tmp_path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(UserError, match="builds on itself"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("below", "above", "model"),
    [
        ("tiny", {"num_layers": 2}, {"base": "tiny", "num_layers": 2}),
        ({"base": "tiny", "num_layers": 2}, "kimi-k2", "kimi-k2"),
        ({"base": "tiny", "num_layers": 2}, {"base": "kimi-k2"}, {"base": "kimi-k2"}),
        ({"base": "tiny"}, {"num_layers": 3}, {"base": "tiny", "num_layers": 3}),
    ],
)
def test_models_merge_as_models(below, above, model):
    assert merge({"model": below}, {"model": above}) == {"model": model}


def test_overrides_reach_the_model():
    recipe = load_recipe("pretrain/tiny", ["model.hidden_size=64", "curves.learning_rate=1e-4"])
    assert recipe.model.hidden_size == 64
    assert recipe.model.num_layers == load_model("tiny").num_layers
    assert recipe.curves.learning_rate(10**9) == 1e-4


def test_devices_and_pipeline_are_one_number():
    long = load_recipe("pretrain/tiny", ["parallel.processes=4", "pipeline.devices=2"])
    short = load_recipe("pretrain/tiny", ["parallel.processes=4", "parallel.pipeline=2"])
    assert long == short
    assert long.parallel.pipeline == long.pipeline.devices == 2


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.seq_lenght=8"], "unknown key 'data.seq_lenght' (nearest: 'seq_length')"),
        (["modle=tiny"], "unknown key 'modle' (nearest: 'model')"),
        (["curves.learning_rates=1"], "unknown key 'curves.learning_rates' (nearest: 'learning"),
        (["curves.mtp_weight=[{linaer: 1}]"], "'curves.mtp_weight.0.linaer' (nearest: 'linear')"),
        (["training.seed=x"], "'training.seed' is 'x'; it must be a valid integer"),
        (["training.seed=true"], "'training.seed' is True; it must be a valid integer"),
        (["precision.dtype=fp16"], "'precision.dtype' is 'fp16'; it must be 'fp32' or 'bf16'"),
        (["training=3"], "'training' is 3; it must be a mapping"),
        (["optimizer.betas=[0.9]"], "'optimizer.betas' is [0.9]; it must have 2 items"),
        (["dispatch.ranks_per_node=many"], "it must be a valid integer or 'auto'"),
        (["model=tinny"], "'tinny' is neither a file nor a shipped model (nearest: 'tiny')"),
        (["model.layernorm_epsilon=.inf"], "'model.layernorm_epsilon' is inf; it must be a finite"),
        (["model.hidden_sise=3"], "unknown key 'model.hidden_sise' (nearest: 'hidden_size')"),
        (["training.tokens=1B"], "give either tokens or steps"),
        (["steps"], "'steps' is not an override"),
        (["[]=3"], "'[]=3' is not an override"),
        (["parallel.expert=3"], "expert 3 does not divide 16 routed experts"),
        (["parallel.processes=3"], "expert 2 does not divide the 3 ranks of a pipeline stage"),
        (["parallel.tensor=4"], "2 processes do not divide by tensor 4"),
        (["data.seq_length=2048"], "more than the model's 1024 positions"),
        (
            ["training.micro_batch_size=3"],
            "batch size 8 is not a multiple of 6 sequences (micro_batch_size 3 × 2 data-par",
        ),
        (["curves.learning_rate=-1"], "curves.learning_rate goes below 0"),
        (["curves.learning_rate=x"], "curves.learning_rate: 'x' is not a curve"),
        (["curves.learning_rate=[{linear: 1, for: 1K}]"], "learning_rate: piece 1: the first"),
        (["precision.fp8={recipe: blockwise}"], "precision.fp8 needs backend: transformer_engine"),
        (["backend=transformer_engine"], "needs a GPU; with host: cpu say backend: local"),
        (["precision.moments=bf16"], "precision.moments: bf16 needs parallel.zero1"),
        (["dispatch.kind=deepep"], "dispatch.kind: deepep needs a GPU"),
        (["model.hidden_size=62"], "hidden_size 62 is not a multiple of 4, which the grouped"),
        (
            [
                "precision.dtype=bf16",
                "model.moe_ffn_hidden_size=44",
                "model.moe_shared_expert_intermediate_size=44",
            ],
            "moe_ffn_hidden_size 44 is not a multiple of 8, which the grouped matrix products",
        ),
        (["dispatch.precision=fp8"], "dispatch.precision: fp8 needs dispatch.kind: two_hop"),
        (
            ["dispatch.hide_shared_expert=true", "recompute=[shared_experts]"],
            "recompute: [shared_experts] as a whole: leave out one of them",
        ),
        (
            ["dispatch={kind: two_hop, ranks_per_node: 3}"],
            "dispatch.ranks_per_node 3 does not divide expert 2: set it to 1 or 2, or to a "
            "multiple of 2",
        ),
        (
            [
                "parallel={processes: 8, expert: 8}",
                "dispatch={ranks_per_node: 3}",
                "curves.batch_size=32",
            ],
            "does not divide expert 8: set it to 1, 2, 4 or 8, or to a multiple of 8",
        ),
        (["pipeline.schedule=dualpype"], "pipeline.schedule 'dualpype' is unknown"),
        (["pipeline.schedule=interleaved"], "needs pipeline.virtual_stages of 2 or more"),
        (["pipeline.virtual_stages=2"], "belongs to the interleaved schedule, not to 1f1b"),
        (
            ["pipeline.executor=upstream", "pipeline.schedule=zbv"],
            "pipeline.executor: upstream runs 1f1b and interleaved, not zbv",
        ),
        (
            ["parallel.pipeline=2", "pipeline.devices=4"],
            "pipeline.devices 4 and parallel.pipeline 2 are one number",
        ),
        (["megatron_args={global-batch-size: 3}"], "the batch size is curves.batch_size"),
    ],
)
def test_refused_in_one_sentence(overrides, sentence):
    with pytest.raises(UserError) as caught:
        load_recipe("pretrain/tiny", overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


PIPED = ["parallel.processes=4", "pipeline.devices=2", "training.micro_batch_size=1"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["pipeline.schedule=dualpipe", "pipeline.devices=1"], "needs an even number of devices"),
        (
            ["pipeline.schedule=dualpipe_v", "training.micro_batch_size=4"],
            "dualpipe_v on 2 devices needs 4 micro-batches, and the smallest batch gives 1",
        ),
        (["pipeline.layout=Et|tt|L"], "pipeline.layout has 3 stages, which 2 devices do not"),
        (["pipeline.layout=Et|ttL"], "pipeline.layout has 3 layers (t), and the model has 4"),
        (["pipeline.layout=tt|ttL"], "is not a layout"),
        (
            ["pipeline.schedule=zbv", "pipeline.devices=4", "parallel.processes=8"],
            "8 pipeline stages need as many layers, and the model has 4",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={cuda-graph-impl: local}"],
            "cannot run under CUDA graphs (cuda-graph-impl)",
        ),
        (
            ["pipeline.executor=ours", "megatron_args={enable_cuda_graph: true}"],
            "cannot run under CUDA graphs (enable-cuda-graph)",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={--defer-embedding-wgrad-compute: true}"],
            "cannot defer the embedding's weight gradient",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={overlap-grad-reduce: true}"],
            "cannot overlap the data-parallel reduction",
        ),
        (
            ["pipeline.schedule=zbv", "parallel.context=2", "parallel.processes=8",
             "host=gpu", "backend=transformer_engine"],
            "does not divide sequences: parallel.context must be 1",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={context-parallel-size: 2}"],
            "context-parallel-size 2 contradicts parallel.context, which is 1",
        ),
        (
            ["megatron_args={transformer-impl: transformer_engine}"],
            "transformer-impl transformer_engine contradicts backend, which is local",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={overlap-moe-expert-parallel-comm: true}"],
            "overlaps the experts' communication by itself",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={delay_wgrad_compute: true}"],
            "puts off weight gradients by itself",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={variable-seq-lengths: true}"],
            "sends tensors of one shape",
        ),
        (
            ["pipeline.schedule=zbv", "megatron_args={cuda-graph-scope: [attn]}"],
            "cannot run under CUDA graphs (cuda-graph-scope)",
        ),
        (
            ["pipeline.schedule=zbv", "parallel.tensor=2", "parallel.processes=8"],
            "sends whole sequences between stages, and tensor parallelism divides them",
        ),
        (
            ["pipeline.ramp_schedule=search"],
            "pipeline.ramp_schedule goes with our executor, and upstream runs 1f1b",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Ett|ttmL"],
            "pipeline.layout has 2 stages, and zbv on 2 devices has 4",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Et|t|t|t||mL"],
            "pipeline.layout has 6 stages, and zbv on 2 devices has 4",
        ),
        (
            ["pipeline.schedule=dualpipe", "pipeline.layout=Et|t|t|tmL"],
            "pipeline.layout has 4 stages, and dualpipe on 2 devices has 2",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Et|t|t|tL"],
            "has 0 multi-token-prediction layers (m), and the model has 1",
        ),
        (
            ["pipeline.schedule=zbv", "pipeline.layout=Et|t|ttm|L"],
            "with executor ours both are on the last stage: end the layout in mL",
        ),
        (
            ["pipeline.schedule=interleaved", "pipeline.virtual_stages=2",
             "pipeline.layout=Ett|ttm||L"],
            "must hold all multi-token-prediction layers (m) on one stage, the last of its device",
        ),
        (
            ["pipeline.layout=Et|ttmtL"],
            "has a layer (t) after multi-token prediction (m), which comes last",
        ),
        (
            ["pipeline.schedule=interleaved", "pipeline.virtual_stages=2",
             "curves.batch_size=6"],
            "is not a multiple of 4 sequences (micro_batch_size 1 × 2 data-parallel ranks × 2",
        ),
    ],
)  # fmt: skip
def test_pipelines_that_cannot_run(overrides, sentence):
    with pytest.raises(UserError) as caught:
        load_recipe("pretrain/tiny", [*PIPED, *overrides])
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0F0,0B0\n1F0\n", "rank 1, slot 0: 1F0 has no backward"),
        ("0F0,0B0\n", "is of 1 ranks, and the recipe has 2 pipeline devices: set pipeline.dev"),
        ("0F0,0B0\n1F0,1B0\n", "is of 1 micro-batches, and a batch of curves.batch_size gives 4"),
        ("0F0,2F0,2B0,0B0\n1F0,1B0\n", "puts different numbers of stages on its ranks"),
        ("0F0,0B0,2F1,2B1\n1F0,1B0,3F1,3B1\n", "that are not each other's mirror image"),
    ],
)
def test_a_schedules_file_is_proven_when_the_recipe_loads(text, sentence, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    overrides = [*PIPED, "curves.batch_size=8", f"pipeline.schedule={path}"]
    with pytest.raises(UserError) as caught:
        load_recipe("pretrain/tiny", overrides)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("name", "stages"), [("dualpipe", 2), ("dualpipe_v", 4), ("1f1b", 2), ("zbv", 4)]
)
def test_every_schedule_comes_back_from_its_file(name, stages, tmp_path):
    """DualPipe's two pipelines hold one model, so two devices are two stages."""
    path = tmp_path / "mine.csv"
    path.write_text(csv_text(SCHEDULES[name].schedule(2, 4).rows))
    overrides = [*PIPED, "curves.batch_size=8"]
    named = load_recipe("pretrain/tiny", [*overrides, f"pipeline.schedule={name}"])
    read = load_recipe("pretrain/tiny", [*overrides, f"pipeline.schedule={path}"])
    assert read.pipeline_stages == named.pipeline_stages == stages
    assert schedules_of(read)(4).rows == schedules_of(named)(4).rows
    assert read.placement(str(path)) == named.placement(name)


@pytest.mark.parametrize(
    ("schedule", "ramp", "way_out"),
    [
        ("dualpipe_v", "1f1b", "name zbv or search"),
        ("dualpipe", "zbv", "raise the smallest batch instead"),
        ("dualpipe", "1f1b", "raise the smallest batch instead"),
        ("dualpipe_v", "zbv", None),
        ("dualpipe_v", "search", None),
        ("zb1p", "1f1b", None),
    ],
)
def test_a_ramp_schedule_places_stages_alike(schedule, ramp, way_out):
    overrides = [*PIPED, f"pipeline.schedule={schedule}", f"pipeline.ramp_schedule={ramp}"]
    if way_out is None:
        recipe = load_recipe("pretrain/tiny", overrides)
        few = schedules_of(recipe)(1)
        assert placement_of(few) == recipe.placement(schedule)
        return
    with pytest.raises(UserError, match="places the model's stages otherwise") as caught:
        load_recipe("pretrain/tiny", overrides)
    assert str(caught.value).endswith(f"{way_out}.")


def test_a_search_is_made_once(monkeypatch):
    asked = []

    def search_nothing(pp, micro_batches, costs, *, effort):
        asked.append((micro_batches, effort))
        return SimpleNamespace(schedule=zbv(pp, micro_batches))

    monkeypatch.setattr(from_recipe, "search", search_nothing)
    schedules = schedules_of(load_recipe("pretrain/tiny", [*PIPED, "pipeline.schedule=search"]))
    assert schedules(3) is schedules(3)
    assert schedules(600) is not schedules(3)
    assert asked == [(3, 6 / 1000), (600, 1.0)]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES.keys() - {"interleaved"}))
def test_every_schedule_has_a_recipe(schedule):
    recipe = load_recipe("pretrain/tiny", [*PIPED, f"pipeline.schedule={schedule}"])
    assert recipe.pipeline_stages == (4 if schedule in ("zbv", "dualpipe_v", "search") else 2)
    assert recipe.executor == ("upstream" if schedule == "1f1b" else "ours")


def test_schedule_from_a_csv_beside_the_recipe(tmp_path):
    (tmp_path / "mine.csv").write_text("0F0,,3F0,3B0,,0B0\n1F0,2F0,,2B0,1B0\n")
    (tmp_path / "run.yaml").write_text(
        "base: pretrain/tiny\nparallel: {processes: 4, pipeline: 2}\n"
        "training: {micro_batch_size: 1}\ncurves: {batch_size: 2}\n"
        "pipeline: {schedule: mine.csv}\n"
    )
    recipe = load_recipe(tmp_path / "run.yaml")
    assert recipe.pipeline.schedule == str(tmp_path / "mine.csv")
    assert (recipe.pipeline_stages, recipe.executor) == (4, "ours")


def test_models_and_recipes_by_name_or_path(tmp_path):
    assert isinstance(load_recipe_or_model("deepseek-v3"), ModelConfig)
    assert isinstance(load_recipe_or_model("pretrain/deepseek-v3"), Recipe)
    load_model("tiny").write(tmp_path / "m.yaml")
    assert load_recipe_or_model(str(tmp_path / "m.yaml")) == load_model("tiny").model_copy(
        update={"name": "tiny"}
    )
    with pytest.raises(UserError, match="is a model, which takes no overrides"):
        load_recipe_or_model("tiny", ["a=1"])


def test_a_model_is_no_recipe_to_train():
    with pytest.raises(UserError, match=r"tiny.yaml is a model, and a recipe is asked for: name"):
        load_recipe("models/tiny")
    with pytest.raises(UserError) as refusal:
        load_recipe("nosuch")
    assert "models/" not in str(refusal.value)
    assert "pretrain/tiny" in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "line"),
        ("- 1\n", "holds list, not a mapping"),
        ("base: 3\n", "'base' must be the name or path of a recipe"),
        ("base: nothing\n", "'nothing' is neither a file nor a shipped recipe"),
        ("training: {steps: 1}\n", "the key 'model' is missing"),
    ],
)
def test_files_that_are_no_recipe(text, sentence, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such recipe file"):
        load_recipe("nowhere.yaml")


def test_yaml_text_of_a_recipe_is_for_people():
    text = load_recipe("pretrain/deepseek-v3").to_yaml()
    assert "14.8T" in text
    assert "2000 steps" in text
    assert yaml_text.parse(text, "here")["curves"]["batch_size"][0]["until"] == "469B"
