"""One step of a small model, by the executor under a schedule and by upstream in one process.

What ranks of these tests run, on gloo and CPU tensors or on NCCL and GPUs: each draws the same
weights and batches, so that whole gradients can be compared. This module makes no process a CPU
host, and imports megatron only when a rank calls.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import dsv3_plugin
from dsv3_plugin.recipe.model import ModelConfig
from dsv3_plugin.recipe.stage_layout import even
from dsv3_plugin.schedules.actions import Schedule
from tests.staged_model import forward_step, staged_model

SEQ, MICRO = 16, 1
MODEL = staged_model(8)

Step = tuple[list[float], dict[str, torch.Tensor]]
"""Losses, and gradients with routers' biases by name in a checkpoint."""


def batches(count: int) -> Iterator[dict[str, torch.Tensor]]:
    """The first micro-batches, of all ranks but for the context-parallel part of each."""
    from megatron.core import parallel_state
    from megatron.core.utils import get_batch_on_this_cp_rank

    context = parallel_state.get_context_parallel_group()
    for number in range(count):
        drawn = torch.randint(64, (MICRO, SEQ + 1), generator=torch.Generator().manual_seed(number))
        drawn = drawn.to("cuda")  # where the CPU is the host, that is the CPU
        whole = {
            "tokens": drawn[:, :-1].contiguous(),
            "labels": drawn[:, 1:].contiguous(),
            "positions": torch.arange(SEQ, device="cuda").expand(MICRO, SEQ),
        }
        yield get_batch_on_this_cp_rank(whole, is_hybrid_cp=False, cp_group=context)


@torch.no_grad()
def fill(chunks: list[torch.nn.Module]) -> None:
    """Weights that depend on nothing but their name in a checkpoint."""
    for chunk in chunks:
        for key, data in _by_name(chunk).items():
            seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
            draw = torch.Generator().manual_seed(seed)
            scale = 0.02 if "expert_bias" in key else 0.2
            part, parts = expert_part(key)
            whole = torch.randn((len(data) * parts, *data.shape[1:]), generator=draw)
            data.copy_(whole.chunk(parts)[part] * scale + ("norm" in key))


def expert_part(key: str) -> tuple[int, int]:
    """Which part of a tensor's first dimension this rank has, by expert parallelism."""
    from megatron.core import parallel_state

    if ".experts." not in key:
        return 0, 1
    return (
        parallel_state.get_expert_model_parallel_rank(),
        parallel_state.get_expert_model_parallel_world_size(),
    )


def _by_name(chunk: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = chunk.sharded_state_dict()
    return {
        value.key: value.data
        for value in tensors.values()
        if isinstance(getattr(value, "data", None), torch.Tensor) and "_extra" not in value.key
    }


def gradients_of(chunks: list[torch.nn.Module]) -> dict[str, torch.Tensor]:
    """main_grad (or grad) of every parameter, and the routers' biases, by name in a checkpoint."""
    answer = {}
    for chunk in chunks:
        module = getattr(chunk, "module", chunk)
        by_storage = {data.data_ptr(): key for key, data in _by_name(module).items()}
        for parameter in module.parameters():
            gradient = getattr(parameter, "main_grad", None)
            gradient = parameter.grad if gradient is None else gradient
            answer[by_storage[parameter.data_ptr()]] = gradient.clone()
        for key, data in _by_name(module).items():
            if "expert_bias" in key:
                answer[key] = data.clone()
    return answer


def _finish(model: Any, *args: Any, **kwargs: Any) -> None:
    from megatron.core.distributed import finalize_model_grads

    finalize_model_grads(model if isinstance(model, list) else [model], *args, **kwargs)


def whole_model(config: ModelConfig = MODEL, **settings: Any) -> torch.nn.Module:
    """The model in one process, in upstream's DDP; destroy its groups when you are done."""
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from dsv3_plugin.model.build import build_model

    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    model = build_model(config, moe_router_bias_update_rate=1e-3, **settings)
    fill([model])
    model.config.finalize_model_grads_func = _finish
    wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
    wrapped.zero_grad_buffer()
    return wrapped


def in_one_process(micro_batches: int) -> Step:
    """The reference, in a world of one rank."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel.schedules import forward_backward_no_pipelining

    wrapped = whole_model()
    reports = forward_backward_no_pipelining(
        forward_step_func=forward_step,
        data_iterator=batches(micro_batches),
        model=wrapped,
        num_microbatches=micro_batches,
        seq_length=SEQ,
        micro_batch_size=MICRO,
    )
    answer = [float(report["lm loss"]) for report in reports], gradients_of([wrapped])
    parallel_state.destroy_model_parallel()
    return answer


def chunks_of(
    schedule: Schedule,
    context: int = 1,
    expert: int = 1,
    config: ModelConfig = MODEL,
    **settings: Any,
) -> list[torch.nn.Module]:
    """This rank's chunks, built where the schedule wants them, each in its DDP.

    Args:
        schedule: the schedule.
        context: ranks that share a sequence.
        expert: ranks that divide the experts.
        config: what of, with eight layers and one of multi-token prediction.
        settings: of upstream's configuration.
    """
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from dsv3_plugin.model.build import build_model
    from dsv3_plugin.pipeline.chunks import PlacedLayout, join_chunks
    from dsv3_plugin.schedules.placement import placement_of

    placement = placement_of(schedule)
    layout = PlacedLayout(even(8, placement.depth, 1), placement)
    virtual = placement.chunks_per_rank if placement.chunks_per_rank > 1 else None
    parallel_state.initialize_model_parallel(
        pipeline_model_parallel_size=schedule.pp,
        virtual_pipeline_model_parallel_size=virtual,
        context_parallel_size=context,
        expert_model_parallel_size=expert,
        get_embedding_ranks=(lambda ranks: [ranks[0]]) if placement.ends_meet else None,
    )
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    rank = parallel_state.get_pipeline_model_parallel_rank()
    chunks = []
    for index, stage in enumerate(placement.chunks[rank]):
        model_stage = placement.model_stage(stage)
        chunks.append(
            build_model(
                config,
                pre_process=model_stage == 0,
                post_process=model_stage == placement.depth - 1,
                vp_stage=index if virtual else None,
                pipeline_model_parallel_size=schedule.pp,
                virtual_pipeline_model_parallel_size=virtual,
                context_parallel_size=context,
                expert_model_parallel_size=expert,
                pipeline_model_parallel_layout=layout,
                deallocate_pipeline_outputs=True,
                moe_router_bias_update_rate=1e-3,
                **settings,
            )
        )
    fill(chunks)
    join_chunks(chunks, placement)
    for chunk in chunks:
        chunk.config.finalize_model_grads_func = _finish
    wrapped = [
        DistributedDataParallel(chunk.config, DistributedDataParallelConfig(), chunk)
        for chunk in chunks
    ]
    for chunk in wrapped:
        chunk.zero_grad_buffer()
    return wrapped


def in_a_pipeline(
    schedule: Schedule, context: int = 1
) -> tuple[list[float], dict[str, torch.Tensor], int, list[float]]:
    """The same step by the executor on this rank's chunks, then an evaluation."""
    from megatron.core import parallel_state

    from dsv3_plugin.pipeline.executor import Executor

    wrapped = chunks_of(schedule, context)
    executor = Executor(lambda count: schedule)
    micro_batches = schedule.num_micro_batches
    arguments = {
        "forward_step_func": forward_step,
        "model": wrapped,
        "seq_length": SEQ,
        "micro_batch_size": MICRO,
    }
    reports = executor(
        data_iterator=[batches(micro_batches) for _ in wrapped],
        num_microbatches=micro_batches,
        **arguments,
    )
    losses = [float(report["lm loss"]) for report in reports]
    gradients = gradients_of(wrapped)
    peak = executor.peak_live
    evaluated = executor(
        data_iterator=[batches(3) for _ in wrapped],
        num_microbatches=3,
        forward_only=True,
        **arguments,
    )
    parallel_state.destroy_model_parallel()
    return losses, gradients, peak, [float(report["lm loss"]) for report in evaluated]


def references(rank: int, schedules: list[Schedule]) -> dict[int, Step]:
    """What `in_one_process` answers, by micro-batches; for the one rank of a world."""
    counts = {schedule.num_micro_batches for schedule in schedules}
    return {count: in_one_process(count) for count in sorted(counts)}


def all_schedules(rank: int, schedules: list[Schedule], context: int = 1) -> list[Any]:
    """For each schedule what `in_a_pipeline` answers on this rank."""
    if context > 1:
        dsv3_plugin.register()  # multi-token prediction in parts of a sequence
    return [in_a_pipeline(schedule, context) for schedule in schedules]


def must_be_of_one_process(
    schedules: list[Schedule],
    reference: dict[int, Step],
    ranks: list[Any],
    *,
    losses: float,
    gradients: float,
) -> None:
    """Hold what `all_schedules` answered on every rank against the one process.

    Args:
        schedules: as given to `all_schedules`.
        reference: what `references` answered for them.
        ranks: what each rank answered.
        losses: largest relative difference of a loss.
        gradients: largest difference of a gradient or router's bias, of the largest of its tensor.
    """
    for index, schedule in enumerate(schedules):
        expected_losses, expected = reference[schedule.num_micro_batches]
        seen = set()
        for answers in ranks:
            got_losses, got, *_ = answers[index]
            assert got_losses == pytest.approx(expected_losses, rel=losses), schedule.name
            for name, gradient in got.items():
                scale = expected[name].abs().max().clamp(min=1e-12)
                error = (gradient - expected[name]).abs().max() / scale
                assert error < gradients, f"{schedule.name}: {name} differs by {error:.2e}"
            seen |= got.keys()
        assert seen == expected.keys(), schedule.name
