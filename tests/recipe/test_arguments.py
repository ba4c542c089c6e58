"""The command line, held against upstream's own parser, validation and calculators."""

import shlex

import pytest

from dsv3_plugin.checkpoint.formats.model_file import model_from_arguments
from dsv3_plugin.machine import Machine
from dsv3_plugin.model import SPEC
from dsv3_plugin.planner.resolve import load_resolved
from dsv3_plugin.recipe import stage_layout
from dsv3_plugin.recipe.arguments import beyond_the_line, command_line, megatron_arguments
from dsv3_plugin.recipe.fields import FIELDS
from dsv3_plugin.recipe.load import load_model, load_recipe

LAPTOP = Machine(gpus=0, transformer_engine=False)
# A shape of run that every model can take, whatever it was trained with.
_ANY_MODEL = [
    "backend=local", "host=cpu", "precision={dtype: fp32}", "data.seq_length=64",
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "pretrain/tiny", "pretrain/deepseek-v3", "extend/tiny-1k", "extend/tiny-4k",
        "extend/deepseek-v3-32k", "extend/deepseek-v3-128k",
    ],
)  # fmt: skip
def test_upstream_accepts_the_shipped_recipes(upstream, name):
    server = Machine(gpus=8, transformer_engine=True)
    recipe = load_resolved(name, [], server)
    args = upstream(recipe, server)
    assert args.data_parallel_size == recipe.data_parallel
    assert args.expert_model_parallel_size == recipe.parallel.expert
    assert args.context_parallel_size == recipe.parallel.context
    assert args.seq_length == recipe.data.seq_length
    assert args.padded_vocab_size == recipe.model.vocab_size
    assert args.transformer_impl == recipe.backend
    assert args.use_distributed_optimizer == recipe.parallel.zero1
    assert args.train_samples * recipe.data.seq_length == recipe.total_tokens
    assert args.lr == recipe.curves.learning_rate.maximum
    assert args.ckpt_format == "torch_dist"
    assert args.exit_signal_handler


def test_deepseek_v3_on_upstreams_words(upstream):
    import torch

    args = upstream(load_recipe("pretrain/deepseek-v3"))
    assert args.bf16
    assert (args.fp8, args.fp8_recipe) == ("e4m3", "blockwise")
    assert args.use_precision_aware_optimizer
    assert args.exp_avg_dtype == args.exp_avg_sq_dtype == torch.bfloat16
    assert args.recompute_modules == ["layernorm", "mla_up_proj", "moe_act"]
    assert args.pipeline_model_parallel_size == 16
    assert args.virtual_pipeline_model_parallel_size == 2
    assert args.distributed_backend == "nccl"


def test_plain_rope_reaches_upstreams_fused_kernel(upstream):
    # The kernel knows YaRN alone. By factor 1 that is plain RoPE, and so it is read back.
    recipe = load_recipe("pretrain/deepseek-v3")
    fused = upstream(recipe, Machine(gpus=8, transformer_engine=True))
    assert (fused.apply_rope_fusion, fused.rope_type) == (True, "yarn")
    assert fused.rotary_scaling_factor == fused.mscale == fused.mscale_all_dim == 1.0
    assert model_from_arguments(vars(fused), recipe.model.name) == recipe.model
    plain = upstream(load_recipe("pretrain/tiny"))
    assert (plain.apply_rope_fusion, plain.rope_type) == (False, "rope")


def test_a_model_of_long_positions_keeps_its_yarn(upstream):
    recipe = load_recipe("pretrain/deepseek-v3", ["model={base: deepseek-v3, rope_type: yarn}"])
    args = upstream(recipe, Machine(gpus=8, transformer_engine=True))
    assert (args.rope_type, args.rotary_scaling_factor) == ("yarn", 40.0)


@pytest.mark.parametrize(
    "model",
    ["tiny", "deepseek-v3", "deepseek-v2", "deepseek-v2-lite", "moonlight-16b-a3b", "kimi-k2"],
)
def test_upstreams_config_is_the_model(upstream, model):
    from megatron.training.argument_utils import core_transformer_config_from_args

    recipe = load_recipe("pretrain/tiny", [f"model={model}", *_ANY_MODEL])
    config = core_transformer_config_from_args(upstream(recipe))
    said = load_model(model).model_dump()
    for row in FIELDS:
        if row.attribute is not None and row.flag is not None:
            assert getattr(config, row.attribute) == said[row.ours], row.ours


@pytest.mark.parametrize("name", ["pretrain/tiny", "pretrain/deepseek-v3"])
def test_upstreams_calculator_walks_our_batch_schedule(name):
    from dsv3_plugin.upstream import cpu_host

    cpu_host.enable()
    from megatron.core.num_microbatches_calculator import StepBatchsizeNumMicroBatchesCalculator

    recipe = load_recipe(name)
    length = recipe.data.seq_length
    calculator = StepBatchsizeNumMicroBatchesCalculator(
        recipe.training.micro_batch_size, recipe.data_parallel, False, 1,
        recipe.batch_schedule.argument(), length,
    )  # fmt: skip
    tokens = 0
    for _ in range(3000):
        calculator.update(tokens // length, consistency_check=True)
        batch = recipe.batch_schedule.batch(tokens)
        assert calculator.get_current_global_batch_size() == batch
        tokens += batch * length
    assert tokens == recipe.batch_schedule.tokens_after(0, 3000)


def test_upstream_counts_as_many_steps(upstream, monkeypatch):
    from megatron.core import num_microbatches_calculator as calculators
    from megatron.training.training import update_train_iters

    recipe = load_recipe("pretrain/tiny")
    args = upstream(recipe)
    calculators.unset_num_microbatches_calculator()
    calculators.init_num_microbatches_calculator(
        1, None, args.global_batch_size, args.micro_batch_size, args.data_parallel_size,
        step_batch_size_schedule=args.step_batch_size_schedule, seq_length=args.seq_length,
    )  # fmt: skip
    try:
        update_train_iters(args)
    finally:
        calculators.unset_num_microbatches_calculator()
    assert args.train_iters == recipe.total_steps


def test_the_printed_line_says_the_same():
    recipe = load_recipe("pretrain/tiny", ["megatron_args={log-throughput: true, num_workers: 0}"])
    printed = "\n".join(command_line(recipe, LAPTOP, SPEC))
    words = shlex.split(printed.replace("\\\n", " "))
    assert words == megatron_arguments(recipe, LAPTOP, SPEC)
    assert printed.splitlines()[0] == "--num-layers 4 \\"
    assert "--spec dsv3_plugin.model.specs deepseek_v3_spec" in printed
    assert words[-3:] == ["--log-throughput", "--num-workers", "0"]


def test_a_long_batch_schedule_is_printed_in_lines_that_upstream_reads_alike():
    from megatron.core.num_microbatches_calculator import (
        StepBatchsizeNumMicroBatchesCalculator as Upstream,
    )

    recipe = load_resolved("pretrain/deepseek-v3", [], LAPTOP)
    lines = command_line(recipe, LAPTOP, SPEC)
    assert max(map(len, lines)) <= 130
    words = shlex.split("\n".join(lines).replace("\\\n", " "))
    meant = megatron_arguments(recipe, LAPTOP, SPEC)
    assert [" ".join(word.split()) for word in words] == meant
    schedule = meant.index("--step-batch-size-schedule") + 1
    assert "\n" in words[schedule]
    parsed = Upstream._parse_schedule
    assert parsed(words[schedule], 4096) == parsed(meant[schedule], 4096)


def test_what_has_no_flag_is_said():
    phrases = beyond_the_line(load_recipe("pretrain/deepseek-v3"))
    assert phrases[0] == "learning rate 0 to 0.00022 over tokens (the line has the largest)"
    assert "pipeline schedule dualpipe_v" in phrases
    assert "two-hop dispatch in fp8" in phrases
    plain = ["curves={learning_rate: 1e-3, router_bias_speed: 0.001, mtp_weight: 0.3}"]
    assert beyond_the_line(load_recipe("pretrain/tiny", plain)) == []


def test_passed_through_flags_come_last_and_win(upstream):
    recipe = load_recipe(
        "pretrain/tiny",
        [
            "megatron_args={moe-router-dtype: fp64, --iterations-to-skip: [3, 4]}",
            "megatron_args.log-throughput=false",
        ],
    )
    args = upstream(recipe)
    assert args.moe_router_dtype == "fp64"  # the recipe's own line says fp32
    assert args.iterations_to_skip == [3, 4]
    assert "--log-throughput" not in megatron_arguments(recipe, LAPTOP, SPEC)


@pytest.mark.parametrize(
    ("gpus", "more", "meanwhile", "parallel"),
    [
        (8, ["host=auto"], True, True),
        (0, [], False, True),
        (0, ["checkpoint.async_save=true", "checkpoint.parallel_load=false"], True, False),
        (0, ["parallel={processes: 1, expert: 1}"], False, False),  # nobody to read for
    ],
    ids=["GPUs", "a CPU", "as the recipe says", "one rank"],
)
def test_how_checkpoints_are_written_and_read(upstream, gpus, more, meanwhile, parallel):
    args = upstream(load_recipe("pretrain/tiny", more), Machine(gpus, transformer_engine=False))
    assert args.async_save == meanwhile  # upstream takes it back where a condition is missing
    assert args.async_strategy == "mcore"
    assert args.ckpt_fully_parallel_load == parallel


def test_a_constant_batch_is_a_plain_flag(upstream):
    recipe = load_recipe("pretrain/tiny", ["curves.batch_size=24", "training.steps=7"])
    args = upstream(recipe)
    assert args.global_batch_size == 24
    assert args.step_batch_size_schedule is None
    assert args.train_samples == 7 * 24


@pytest.mark.parametrize(
    ("layers", "stages", "mtp", "written"),
    [
        (4, 2, 1, "Ett|ttmL"),
        (4, 4, 0, "Et|t|t|tL"),
        (5, 4, 1, "Et|tt|t|tmL"),
        (6, 4, 1, "Et|tt|tt|tmL"),
        (7, 4, 0, "Ett|tt|tt|tL"),
    ],
)
def test_even_layouts(layers, stages, mtp, written):
    assert stage_layout.even(layers, stages, mtp) == written


@pytest.mark.parametrize(
    ("text", "stages"),
    [("Ett|(tt|)*29t|mL", 32), ("Et*3|(tt|)*29,m|L", 32), ("EtL", 1), ("Et|t*4|tL", 3)],
)
def test_layouts_mean_what_upstream_means(text, stages):
    from dsv3_plugin.upstream import cpu_host

    cpu_host.enable()
    from megatron.core.transformer.pipeline_parallel_layer_layout import (
        PipelineParallelLayerLayout,
    )

    assert stage_layout.stage_count(text) == stages
    assert PipelineParallelLayerLayout.get_num_stages_from_str(text) == stages
    parsed = PipelineParallelLayerLayout.parse_str_to_list(text)
    letters = {"embedding": "E", "decoder": "t", "mtp": "m", "loss": "L"}
    ours = ["".join(letters[kind.name] for kind in stage) for stage in parsed]
    assert stage_layout.expand(text) == "|".join(ours)


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zbv", "dualpipe", "dualpipe_v"])
def test_upstream_accepts_every_schedules_layout(upstream, schedule):
    overrides = ["parallel.processes=4", "pipeline.devices=2", "training.micro_batch_size=1"]
    if schedule == "interleaved":
        overrides.append("pipeline.virtual_stages=2")
    recipe = load_recipe("pretrain/tiny", [*overrides, f"pipeline.schedule={schedule}"])
    args = upstream(recipe)
    chunks = args.virtual_pipeline_model_parallel_size or 1
    assert chunks * args.pipeline_model_parallel_size == recipe.pipeline_stages
