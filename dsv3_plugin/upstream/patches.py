"""The one table of patches: every symbol of Megatron that we replace, why, and what checks it.

`register()` applies the table, twice is harmless; `unregister()` puts upstream back. The table is
written for one version of megatron-core: with another, `register()` refuses and lists what has to
be checked. A replacement is named by text, like a package's entry point, because the rooms that
hold it stand above this one and are imported only when the patch is applied.
"""

import importlib.metadata
from dataclasses import dataclass

from dsv3_plugin.errors import UserError
from dsv3_plugin.upstream import cpu_host
from dsv3_plugin.upstream.replace import Replacer, lookup

MEGATRON_CORE = "0.19.2"


@dataclass(frozen=True)
class Patch:
    """One replaced symbol of upstream.

    Attributes:
        targets: every `module:attribute` where the symbol stands (a from-import makes copies).
        replacement: `module:attribute` of what takes its place.
        reason: why configuration or a subclass does not reach.
        test: the test that fails without it.
        wraps: the replacement is called with the original and returns what takes its place.
        cpu_only: needed on the CPU host alone.
    """

    targets: tuple[str, ...]
    replacement: str
    reason: str
    test: str
    wraps: bool = False
    cpu_only: bool = False


PATCHES: tuple[Patch, ...] = (
    Patch(
        targets=("megatron.training.training:OptimizerParamScheduler",),
        replacement="dsv3_plugin.training.step:CurveScheduler",
        reason="upstream's learning-rate styles cannot chain DeepSeek-V3's five phases",
        test="tests/training/test_step.py",
    ),
    Patch(
        targets=("megatron.training.training:train_step",),
        replacement="dsv3_plugin.training.step:step_on_curves",
        reason="γ and λ are constants of the configuration upstream; here they follow curves",
        test="tests/training/test_step.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.training:training_log",),
        replacement="dsv3_plugin.training.metrics:log_step",
        reason="upstream logs to text and TensorBoard only; a run keeps metrics.jsonl",
        test="tests/training/test_train.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.training:train",),
        replacement="dsv3_plugin.training.metrics:evaluate_first",
        reason="upstream evaluates after steps only, never before the first",
        test="tests/training/test_train.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.training:evaluate_and_print_results",),
        replacement="dsv3_plugin.training.metrics:log_evaluation",
        reason="the held-out loss reaches metrics.jsonl only from inside",
        test="tests/training/test_train.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.training:save_checkpoint",),
        replacement="dsv3_plugin.training.saving:save_whole",
        reason="a checkpoint must carry its model and tokenizer, and old ones must go",
        test="tests/training/test_resume.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.core.dist_checkpointing.strategies.filesystem_async:get_write_results_queue",
        ),
        replacement="dsv3_plugin.training.saving:results_queue",
        reason="a helper process for every save, which a SIGTERM to the job kills before the save",
        test="tests/training/test_resume.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.optimizer:_get_megatron_optimizer_based_on_param_groups",),
        replacement="dsv3_plugin.upstream.torch_adam:in_one_pass",
        reason="torch's AdamW is made without `fused`: a dozen passes over the parameters for one",
        test="tests/upstream/test_torch_adam.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.core.optimizer.optimizer:MegatronOptimizer._filter_and_reorder_param_groups",
        ),
        replacement="dsv3_plugin.upstream.learning_rates:whatever_the_rate",
        reason="a run that goes on with another largest learning rate finds no parameter group",
        test="tests/training/test_parallel.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.state_dict",),
        replacement="dsv3_plugin.upstream.torch_adam:fresh_state_dict",
        reason="with torch's AdamW it asserts that a step was taken before a checkpoint is loaded",
        test="tests/training/test_parallel.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.load_state_dict",),
        replacement="dsv3_plugin.upstream.torch_adam:own_steps",
        reason="with torch's AdamW all states share one step tensor, counted up by each",
        test="tests/training/test_parallel.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"
            "._set_main_param_and_optimizer_states",
        ),
        replacement="dsv3_plugin.upstream.torch_adam:moments_alone",
        reason="with torch's AdamW it looks for the step among the saved moments",
        test="tests/training/test_parallel.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.core.pipeline_parallel.schedules:get_forward_backward_func",
            "megatron.core.pipeline_parallel:get_forward_backward_func",
            "megatron.training.training:get_forward_backward_func",
        ),
        replacement="dsv3_plugin.pipeline.executor:choose_executor",
        reason="upstream chooses among its own schedules by pipeline size alone",
        test="tests/pipeline/test_executor.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.tensor_parallel.mappings:_AllToAll",),
        replacement="dsv3_plugin.dispatch.alltoall:AllToAll",
        reason="upstream's exchange blocks; in an overlapped pair the partner computes meanwhile",
        test="tests/distributed/test_overlap.py",
    ),
    Patch(
        targets=("megatron.training.models.gpt:mtp_block_spec",),
        replacement="dsv3_plugin.model.specs:our_mtp_for_our_layers",
        reason="upstream's builder makes the MTP layers' spec itself and never asks --spec",
        test="tests/model/test_specs.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.tensor_parallel:vocab_parallel_cross_entropy",),
        replacement="dsv3_plugin.model.loss:cross_entropy",
        reason="on a CPU the vocabulary-parallel form costs several passes that one rank can spare",
        test="tests/model/test_small_layers.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.tensor_parallel.random:CheckpointWithoutOutput.__init__",),
        replacement="dsv3_plugin.upstream.recompute:without_fp8",
        reason="without TE, recomputing norms or MLA up-projections fails on a name TE brings",
        test="tests/model/test_recompute.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.datasets.utils:compile_helpers",),
        replacement="dsv3_plugin.data.datasets:use_shipped_helper",
        reason="the wheel ships the compiled data helper, but not the Makefile that would build it",
        test="tests/training/test_train.py",
    ),
    Patch(
        targets=(
            "megatron.core.transformer.moe.moe_utils:maybe_move_tensor_to_cpu",
            "megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu",
        ),
        replacement="dsv3_plugin.upstream.alltoall_on_cpu:move_to_host",
        reason="split sizes of CPU tensors stay tensors, which all_to_all_single refuses",
        test="tests/upstream/test_alltoall_on_cpu.py",
        wraps=True,
        cpu_only=True,
    ),
    Patch(
        targets=(
            "megatron.training.initialize:initialize_megatron",
            "megatron.training.training:initialize_megatron",
        ),
        replacement="dsv3_plugin.upstream.cpu_host:allow_no_cuda",
        reason="pretrain() cannot pass allow_no_cuda on",
        test="tests/upstream/test_cpu_host.py",
        wraps=True,
        cpu_only=True,
    ),
)

_replacer = Replacer()


def check_version(installed: str) -> None:
    """Refuse a megatron-core the table was not written for.

    Raises:
        UserError: with the list of symbols an upgrade has to check.
    """
    if installed != MEGATRON_CORE:
        symbols = ", ".join(target for patch in PATCHES for target in patch.targets)
        raise UserError(
            f"megatron-core {installed} is installed, and the patches are written for "
            f"{MEGATRON_CORE}: install that version, or check each of {symbols}."
        )


def register() -> None:
    """Apply the table to this process. Twice is harmless.

    Raises:
        UserError: another megatron-core than the one the table is written for.
    """
    check_version(importlib.metadata.version("megatron-core"))
    for patch in PATCHES:
        if patch.cpu_only and not cpu_host.is_enabled():
            continue
        replacement = lookup(patch.replacement)
        for target in patch.targets:
            if patch.wraps:
                _replacer.wrap(target, replacement)
            else:
                _replacer.set(target, replacement)


def unregister() -> None:
    """Put upstream back as it was installed."""
    _replacer.restore()


def is_registered() -> bool:
    """Whether the table is applied now."""
    return _replacer.active
