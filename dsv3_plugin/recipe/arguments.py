"""A recipe as the command line of upstream's own parser (`megatron.training.arguments`, 0.19.2).

The curves have no flags: the trainer applies learning rate, γ and λ at run time, and the command
line carries their largest values; the batch size travels in `--step-batch-size-schedule`. What the
flags cannot say about a model (YaRN's betas and original length) is set on upstream's configuration
by `dsv3_plugin.model.config`, and by the trainer what they cannot say of a run.
"""

import math
import shlex
import textwrap
from collections.abc import Iterator

from dsv3_plugin.errors import UserError
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe import corpora, fields
from dsv3_plugin.recipe.continued import Continued
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.options import OPTIONS, chosen
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.recipe.schema import Recipe

_RECOMPUTE = {"norms": "layernorm"}
"""Our names of recomputed activations that upstream calls otherwise."""

_GARBAGE_INTERVAL = 100
"""Steps between collections. A step leaves no cycles that hold a tensor, so they can wait."""

Flag = tuple[str, *tuple[object, ...]]
"""A flag with its values; none makes it a bare flag."""

Spec = tuple[str, str]
"""A module and a function in it that makes the layers' specification, for `--spec`."""


def megatron_arguments(recipe: Recipe, machine: Machine, spec: Spec) -> list[str]:
    """The argv (without the program's name) that tells upstream to run the recipe.

    Args:
        recipe: the run.
        machine: where; it decides what `auto` in the recipe means.
        spec: what makes the layers.

    Raises:
        UserError: the recipe says something that upstream's flags cannot.
    """
    return [word for flag in _flags(recipe, machine, spec) for word in flag]


def command_line(recipe: Recipe, machine: Machine, spec: Spec) -> list[str]:
    """The same arguments as shell text, one flag a line; the batch schedule takes several."""
    *first, last = map(_in_shell, _flags(recipe, machine, spec))
    return [line for flag in first for line in f"{flag} \\".splitlines()] + last.splitlines()


def _in_shell(flag: tuple[str, ...]) -> str:
    """A flag as shell text; upstream parts a batch schedule at any white space, so at ends of lines
    too."""
    if flag[0] == "--step-batch-size-schedule":
        flag = (flag[0], *(textwrap.fill(value, 100) for value in flag[1:]))
    return shlex.join(flag)


def beyond_the_line(recipe: Recipe) -> list[str]:
    """What of a recipe `dsv3 train` does and upstream's flags cannot say, a phrase each.

    A run started from the command line alone trains without it.
    """
    curves = {
        "learning rate": recipe.curves.learning_rate,
        "router-bias speed γ": recipe.curves.router_bias_speed,
        "MTP weight λ": recipe.curves.mtp_weight,
    }
    phrases = [
        f"{name} {curve.minimum:g} to {curve.maximum:g} over tokens (the line has the largest)"
        for name, curve in curves.items()
        if curve.minimum != curve.maximum
    ]
    if recipe.parallel.pipeline > 1 and recipe.executor == "ours":
        phrases.append(f"pipeline schedule {recipe.pipeline.schedule}")
    if recipe.model.moe_layers and recipe.dispatch.kind == "two_hop":
        phrases.append(f"two-hop dispatch in {recipe.dispatch.precision}")
    if recipe.model.rope_type == "yarn":
        phrases.append("YaRN's betas and original length")
    if isinstance(recipe, Rl):
        phrases.append("answers to prompts, their rewards and GRPO's loss")
    elif recipe.data.packing != "stream":
        phrases.append("documents that stay whole")
    if sets := recipe.data.held_out_sets:
        phrases.append(f"evaluations on {', '.join(sets)}")
    if recipe.precision.swiglu_input is not None:
        phrases.append(f"inputs of SwiGLU kept in {recipe.precision.swiglu_input}")
    return phrases


def _flags(recipe: Recipe, machine: Machine, spec: Spec) -> Iterator[tuple[str, ...]]:
    """Each flag with its values, as text."""
    groups = (
        model_flags(recipe.model, fused=recipe.resolved_backend(machine) == "transformer_engine"),
        _backend(recipe, machine, spec),
        _options(recipe, machine),
        _precision(recipe),
        _parallelism(recipe),
        _dispatch(recipe),
        _training(recipe),
        _data(recipe),
        _checkpoints(recipe, machine),
        _passed_through(recipe),
    )
    for group in groups:
        for name, *values in group:
            yield (f"--{name}", *(_text(value) for value in values))


def _text(value: object) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def model_flags(model: ModelConfig, *, fused: bool) -> Iterator[Flag]:
    """The model's flags; `fused`: the kernels are Transformer Engine's.

    Raises:
        UserError: no flag can say what the model is.
    """
    try:
        for name, *values in fields.flags(model):
            # Upstream's fused rotation of MLA knows YaRN alone; by factor 1, which the flags of
            # plain RoPE say beside the type, it is plain RoPE (see model/config.py).
            yield (name, "yarn") if fused and name == "rope-type" else (name, *values)
    except ValueError as error:
        raise UserError(f"{error}.") from error
    # What all of the family share.
    yield "normalization", "RMSNorm"
    yield ("swiglu",)
    yield ("disable-bias-linear",)
    yield "attention-dropout", 0.0
    yield "hidden-dropout", 0.0
    yield "embedding-init-method-std", model.init_method_std
    yield ("multi-latent-attention",)
    yield ("qk-layernorm",)
    yield "kv-channels", model.v_head_dim
    yield "position-embedding-type", "rope"
    if model.moe_layers:
        yield "moe-router-dtype", "fp32"


def _backend(recipe: Recipe, machine: Machine, spec: Spec) -> Iterator[Flag]:
    yield from kernel_flags(recipe.resolved_backend(machine), spec, on_gpu=recipe.on_gpu(machine))


def kernel_flags(backend: str, spec: Spec, *, on_gpu: bool) -> Iterator[Flag]:
    """The flags of what computes: the layers, their kernels, and how ranks talk."""
    yield "transformer-impl", backend
    yield "spec", *spec
    if backend == "transformer_engine":
        yield ("moe-grouped-gemm",)
        yield ("moe-permute-fusion",)
    else:
        # The fused kernels that these leave out are Apex's and Transformer Engine's.
        yield ("no-gradient-accumulation-fusion",)
        yield ("no-masked-softmax-fusion",)
        yield ("no-persist-layer-norm",)
        yield ("no-rope-fusion",)
    yield "distributed-backend", "nccl" if on_gpu else "gloo"


def _options(recipe: Recipe, machine: Machine) -> Iterator[Flag]:
    for flag in OPTIONS:
        if chosen(flag, recipe, machine):
            yield (flag,)
            if flag == "manual-gc":
                yield "manual-gc-interval", _GARBAGE_INTERVAL


def _precision(recipe: Recipe) -> Iterator[Flag]:
    precision = recipe.precision
    if precision.dtype == "bf16":
        yield ("bf16",)
    if precision.fp8 is not None:
        yield "fp8-format", precision.fp8.format
        yield "fp8-recipe", precision.fp8.recipe
    if precision.moments == "bf16":
        yield ("use-precision-aware-optimizer",)
        yield "exp-avg-dtype", "bf16"
        yield "exp-avg-sq-dtype", "bf16"
    if recipe.recompute:
        yield "recompute-granularity", "selective"
        yield "recompute-modules", *(_RECOMPUTE.get(name, name) for name in recipe.recompute)


def _parallelism(recipe: Recipe) -> Iterator[Flag]:
    parallel = recipe.parallel
    yield "tensor-model-parallel-size", parallel.tensor
    if parallel.tensor > 1:
        # Upstream refuses tensor-parallel experts without it.
        yield ("sequence-parallel",)
    yield "pipeline-model-parallel-size", parallel.pipeline
    if parallel.pipeline > 1:
        yield "pipeline-model-parallel-layout", recipe.stage_layout
    yield "context-parallel-size", parallel.context
    yield "expert-model-parallel-size", parallel.expert
    yield "expert-tensor-parallel-size", 1
    if parallel.zero1:
        yield ("use-distributed-optimizer",)
        # So that optimizer states resume under any other parallelism.
        yield ("dist-ckpt-optim-fully-reshardable",)
    yield "distributed-timeout-minutes", math.ceil(parallel.timeout_minutes)


def _dispatch(recipe: Recipe) -> Iterator[Flag]:
    if not recipe.model.moe_layers:
        return
    kind = recipe.dispatch.kind
    if kind in ("deepep", "hybridep"):
        yield "moe-token-dispatcher-type", "flex"
        yield "moe-flex-dispatcher-backend", kind
    else:
        # two_hop is ours: the spec puts it in the place of upstream's all-to-all.
        yield "moe-token-dispatcher-type", "alltoall"


def _training(recipe: Recipe) -> Iterator[Flag]:
    training, curves, optimizer = recipe.training, recipe.curves, recipe.optimizer
    schedule = recipe.batch_schedule
    yield "micro-batch-size", training.micro_batch_size
    if len(schedule.entries) == 1:
        yield "global-batch-size", schedule.batch(0)
    else:
        yield "step-batch-size-schedule", schedule.argument()
    yield "train-samples", recipe.total_tokens // recipe.data.seq_length
    yield "lr", curves.learning_rate.maximum
    yield "lr-decay-style", "constant"
    if recipe.model.moe_router_enable_expert_bias:
        yield "moe-router-bias-update-rate", curves.router_bias_speed.maximum
    if recipe.model.mtp_num_layers:
        yield "mtp-loss-scaling-factor", curves.mtp_weight.maximum
    yield "optimizer", optimizer.kind
    yield "adam-beta1", optimizer.betas[0]
    yield "adam-beta2", optimizer.betas[1]
    yield "adam-eps", optimizer.eps
    yield "weight-decay", optimizer.weight_decay
    yield "clip-grad", optimizer.clip_grad
    yield "seed", training.seed
    if training.eval_interval is not None and not isinstance(recipe, Rl):
        yield "eval-interval", training.eval_interval
        yield "eval-iters", training.eval_steps
    else:
        yield "eval-interval", recipe.total_steps  # upstream divides by it all the same
        yield "eval-iters", 0
    yield "eval-global-batch-size", schedule.batch(0)
    yield "log-interval", training.log_interval
    yield "tensorboard-dir", recipe.run_folder.tensorboard
    yield ("exit-signal-handler",)
    yield ("no-one-logger",)


def _data(recipe: Recipe) -> Iterator[Flag]:
    data = recipe.data
    yield "seq-length", data.seq_length
    yield "tokenizer-type", "HuggingFaceTokenizer"
    if isinstance(recipe, Rl):  # what is trained on is made on the way
        yield "tokenizer-model", recipe.checkpoint_folder / "tokenizer"
        yield "dataloader-type", "external"
    else:
        yield from _datasets(recipe)
    if data.packing != "stream":  # as many tokens count as are there, in each micro-batch others
        yield ("calculate-per-token-loss",)
    # Attention is causal everywhere: no core attention reads a mask.
    yield ("no-create-attention-mask-in-dataloader",)


def _datasets(recipe: Recipe) -> Iterator[Flag]:
    data = recipe.data
    yield "tokenizer-model", corpora.folders(recipe.data_folder, data.corpus)[0] / "tokenizer"
    yield "train-data-path", *_blend(recipe, "train")
    if data.held_out:
        yield "valid-data-path", *_blend(recipe, "held_out")
    if not corpora.is_one(data.corpus):
        yield "data-cache-path", recipe.data_folder / "cache"


def _blend(recipe: Recipe, part: str) -> Iterator[object]:
    """A part of each member, behind its weight where it has one."""
    corpus = recipe.data.corpus
    drawn, folders = corpora.drawn_from(corpus), corpora.folders(recipe.data_folder, corpus)
    for (_, member), folder in zip(drawn, folders, strict=True):
        if member.weight is not None and len(drawn) > 1:
            yield member.weight
        yield folder / part


def _checkpoints(recipe: Recipe, machine: Machine) -> Iterator[Flag]:
    yield "save", recipe.checkpoint_folder
    yield "load", recipe.checkpoint_folder
    if isinstance(recipe, Continued):  # read while the run has none of its own
        yield "pretrained-checkpoint", recipe.run_folder.parent
    yield "save-interval", recipe.checkpoint.interval
    yield "ckpt-format", "torch_dist"
    if recipe.checkpoint.parallel_load and recipe.parallel.context * recipe.data_parallel > 1:
        yield ("ckpt-fully-parallel-load",)
    if recipe.saves_meanwhile(machine):
        yield ("async-save",)
        yield ("use-persistent-ckpt-worker",)  # upstream's condition; dsv3 train has threads
        yield "async-strategy", "mcore"
    # The recipe decides, not what the checkpoint remembers of an older one.
    yield ("override-opt-param-scheduler",)


def _passed_through(recipe: Recipe) -> Iterator[Flag]:
    for name, value in recipe.passed_flags.items():
        if value is False:
            continue
        if value is True:
            yield (name,)
        elif isinstance(value, list):
            yield name, *value
        else:
            yield name, value
