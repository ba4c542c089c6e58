"""What upstream/ replaces of upstream, and why: its rows of the table of patches."""

from dsv3_plugin.upstream import (
    alltoall_on_cpu,
    common_step,
    cpu_host,
    cublas_workspace,
    learning_rates,
    recompute,
    torch_adam,
)
from dsv3_plugin.upstream.patching import Patch

PATCHES: tuple[Patch, ...] = (
    Patch(
        targets=("megatron.core.optimizer:_get_megatron_optimizer_based_on_param_groups",),
        replacement=torch_adam.get_megatron_optimizer_based_on_param_groups,
        reason="torch's AdamW is made without `fused`: a dozen passes over the parameters for one",
        test="tests/upstream/test_torch_adam.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.core.optimizer.optimizer:MegatronOptimizer._filter_and_reorder_param_groups",
        ),
        replacement=learning_rates.filter_and_reorder_param_groups,
        reason="a run that goes on with another largest learning rate finds no parameter group",
        test="tests/training/test_parallel.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.state_dict",),
        replacement=torch_adam.state_dict,
        reason="with torch's AdamW it asserts that a step was taken before a checkpoint is loaded",
        test="tests/training/test_parallel.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.load_state_dict",),
        replacement=torch_adam.load_state_dict,
        reason="with torch's AdamW all states share one step tensor, counted up by each",
        test="tests/training/test_parallel.py",
        wraps=True,
    ),
    Patch(
        targets=(
            "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"
            "._set_main_param_and_optimizer_states",
        ),
        replacement=torch_adam.set_main_param_and_optimizer_states,
        reason="with torch's AdamW it looks for the step among the saved moments",
        test="tests/training/test_parallel.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.optimizer.optimizer:ChainedOptimizer.load_state_dict",),
        replacement=common_step.load_state_dict,
        reason="where the first stage has no experts, theirs go on with no step, or from step 0",
        test="tests/upstream/without_a_run/test_optimizers.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.tensor_parallel.random:CheckpointWithoutOutput.__init__",),
        replacement=recompute.checkpoint_without_output_init,
        reason="without TE, recomputing norms or MLA up-projections fails on a name TE brings",
        test="tests/model/test_recompute.py",
        wraps=True,
    ),
    Patch(
        targets=("megatron.core.tensor_parallel.random:_get_share_storage",),
        replacement=recompute.get_share_storage,
        reason="compiles C++ in a backward: fails where it cannot, hangs if one was killed in it",
        test="tests/model/test_recompute.py",
        wraps=True,
    ),
    Patch(
        targets=("transformer_engine.pytorch.cpp_extensions.gemm:get_cublas_workspace",),
        replacement=cublas_workspace.get_cublas_workspace,
        reason="one workspace per device: products on two streams write it at the same time",
        test="tests/pipeline/test_streams.py",
        wraps=True,
        of_te=True,
    ),
    Patch(
        targets=(
            "megatron.core.transformer.moe.moe_utils:maybe_move_tensor_to_cpu",
            "megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu",
        ),
        replacement=alltoall_on_cpu.maybe_move_tensor_to_cpu,
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
        replacement=cpu_host.initialize_megatron,
        reason="pretrain() cannot pass allow_no_cuda on",
        test="tests/upstream/test_cpu_host.py",
        wraps=True,
        cpu_only=True,
    ),
)
