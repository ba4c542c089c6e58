"""The table of patches, whole: what training/ replaces of upstream, and the rows of all rooms.

`dsv3_plugin.register()` applies `TABLE`.
"""

from dsv3_plugin.checkpoint import patches as of_checkpoint
from dsv3_plugin.data import patches as of_data
from dsv3_plugin.dispatch import patches as of_dispatch
from dsv3_plugin.model import patches as of_model
from dsv3_plugin.pipeline import patches as of_pipeline
from dsv3_plugin.training import around_upstream, background_writer, curves
from dsv3_plugin.upstream import patches as of_upstream
from dsv3_plugin.upstream.patching import Patch

PATCHES: tuple[Patch, ...] = (
    Patch(
        targets=("megatron.training.training:OptimizerParamScheduler",),
        replacement=curves.CurveScheduler,
        reason="upstream's learning-rate styles cannot chain DeepSeek-V3's five phases",
        test="tests/training/test_step.py",
    ),
    Patch(
        targets=("megatron.training.training:train",),
        replacement=around_upstream.train,
        reason="upstream evaluates after steps only, never before the first",
        test="tests/training/test_train.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.training.training:update_num_microbatches",
            "megatron.training.checkpointing:update_num_microbatches",
        ),
        replacement=around_upstream.update_num_microbatches,
        reason="upstream saves at each growth of the batch, and does not say that it is why",
        test="tests/training/test_saving.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.training:train_step",),
        replacement=around_upstream.train_step,
        reason="γ and λ are constants upstream; here what a step computes with is set before it",
        test="tests/training/test_step.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.training:finalize_model_grads",),
        replacement=around_upstream.finalize_model_grads,
        reason="between the last backward and the optimizer upstream asks nobody",
        test="tests/training/test_hooks.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.training:training_log",),
        replacement=around_upstream.training_log,
        reason="upstream logs to text and TensorBoard only; a run keeps metrics.jsonl",
        test="tests/training/test_train.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.training:evaluate_and_print_results",),
        replacement=around_upstream.evaluate_and_print_results,
        reason="the held-out loss reaches metrics.jsonl only from inside",
        test="tests/training/test_train.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.training:save_checkpoint",),
        replacement=around_upstream.save_checkpoint,
        reason="nobody is asked whether a checkpoint is wanted, nor told when it is whole",
        test="tests/training/test_resume.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.checkpointing:generate_state_dict",),
        replacement=around_upstream.generate_state_dict,
        reason="what runs beside a step has no place in upstream's checkpoint",
        test="tests/training/test_hooks.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.checkpointing:_load_base_checkpoint",),
        replacement=around_upstream.load_base_checkpoint,
        reason="what a checkpoint holds beside upstream's own is dropped after reading",
        test="tests/training/test_hooks.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.training.training:load_checkpoint",),
        replacement=around_upstream.load_checkpoint,
        reason="nobody is told that a run goes on from a checkpoint, and from which",
        test="tests/training/test_hooks.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.training.training:maybe_finalize_async_save",
            "megatron.training.async_utils:maybe_finalize_async_save",
        ),
        replacement=around_upstream.maybe_finalize_async_save,
        reason="nobody is told when a checkpoint written meanwhile is whole, or why it is not",
        test="tests/training/test_saving.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.core.dist_checkpointing.strategies.filesystem_async:get_write_results_queue",
        ),
        replacement=background_writer.get_write_results_queue,
        reason="a helper process for every save, which a SIGTERM to the job kills before the save",
        test="tests/training/test_resume.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.core.dist_checkpointing.strategies.async_utils:"
            "AsyncCallsQueue._get_async_caller",
        ),
        replacement=background_writer.get_async_caller,
        reason="upstream writes in a process, which needs CUDA IPC and ends with a SIGTERM to all",
        test="tests/training/test_saving.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.training.initialize:init_persistent_async_worker",
            "megatron.training.async_utils:init_persistent_async_worker",
        ),
        replacement=background_writer.init_persistent_async_worker,
        reason="with --async-save every rank begins by starting a process that writes",
        test="tests/training/test_saving.py",
        wraps=True,
    ),
)

TABLE: tuple[Patch, ...] = (
    *of_upstream.PATCHES,
    *of_dispatch.PATCHES,
    *of_model.PATCHES,
    *of_data.PATCHES,
    *of_checkpoint.PATCHES,
    *of_pipeline.PATCHES,
    *PATCHES,
)
