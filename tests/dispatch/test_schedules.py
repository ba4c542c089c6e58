"""Two-hop dispatch under every pipeline schedule: loss and gradients of upstream's all-to-all.

Two stages' ranks by two expert-parallel ranks, each a node of its own. Both dispatchers run the
same schedule from the same weights, so what differs is the dispatch alone.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dsv3_plugin.recipe.stage_layout import even
from dsv3_plugin.schedules.actions import Compute, Schedule
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.interleaved import interleaved
from dsv3_plugin.schedules.one_f_one_b import one_f_one_b
from dsv3_plugin.schedules.zb1p import zb1p
from dsv3_plugin.schedules.zbv import zbv
from tests.gloo_ranks import run_ranks
from tests.staged_model import forward_step, staged_model

SEQ, LAYERS = 16, 4
MODEL = staged_model(LAYERS)
SCHEDULES = {
    "1f1b": one_f_one_b(2, 3),
    "zb1p": zb1p(2, 3),
    "interleaved": interleaved(2, 4, 2),
    "zbv": zbv(2, 3),
    "dualpipe": dualpipe(2, 4),
    "dualpipe_v": dualpipe_v(2, 4),
}
TWO_HOP = {"kind": "two_hop", "ranks_per_node": 1, "hide_shared_expert": True}
FP8 = TWO_HOP | {"precision": "fp8"}
Step = tuple[list[float], dict[str, torch.Tensor]]


def batches(count: int) -> Iterator[dict[str, torch.Tensor]]:
    """Micro-batches; ranks of one stage have different ones."""
    from megatron.core import parallel_state

    copy = parallel_state.get_data_parallel_rank()
    for number in range(count):
        generator = torch.Generator().manual_seed(10 * number + copy)
        drawn = torch.randint(64, (1, SEQ + 1), generator=generator)
        yield {
            "tokens": drawn[:, :-1],
            "labels": drawn[:, 1:],
            "positions": torch.arange(SEQ).expand(1, SEQ),
        }


@contextlib.contextmanager
def parallel(schedule: Schedule) -> Iterator[Any]:
    """Upstream's groups for a schedule on two pipeline ranks by two expert-parallel ones."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from dsv3_plugin.schedules.placement import placement_of

    placement = placement_of(schedule)
    chunks = placement.chunks_per_rank
    parallel_state.initialize_model_parallel(
        pipeline_model_parallel_size=schedule.pp,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        expert_model_parallel_size=2,
        get_embedding_ranks=(lambda ranks: [ranks[0]]) if placement.ends_meet else None,
    )
    torch.manual_seed(1 + parallel_state.get_pipeline_model_parallel_rank())
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    yield placement
    parallel_state.destroy_model_parallel()


def build_chunks(
    schedule: Schedule, placement: Any, dispatch: dict[str, Any]
) -> list[torch.nn.Module]:
    """This rank's chunks; the same weights on every call."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_model import GPTModel

    from dsv3_plugin.dispatch.moe_layer import configure_dispatch
    from dsv3_plugin.model.config import transformer_config
    from dsv3_plugin.model.layers import mtp_block_spec
    from dsv3_plugin.model.specs import deepseek_v3_spec
    from dsv3_plugin.pipeline.chunks import PlacedLayout, join_chunks

    virtual = placement.chunks_per_rank if placement.chunks_per_rank > 1 else None
    chunks = []
    for index, stage in enumerate(
        placement.chunks[parallel_state.get_pipeline_model_parallel_rank()]
    ):
        config = transformer_config(
            MODEL,
            pipeline_model_parallel_size=schedule.pp,
            virtual_pipeline_model_parallel_size=virtual,
            pipeline_model_parallel_layout=PlacedLayout(
                even(LAYERS, placement.depth, 1), placement
            ),
            expert_model_parallel_size=2,
            deallocate_pipeline_outputs=True,
        )
        configure_dispatch(config, **dispatch)
        vp_stage = index if virtual else None
        layers = deepseek_v3_spec(config, vp_stage=vp_stage)
        model_stage = placement.model_stage(stage)
        chunks.append(
            GPTModel(
                config=config,
                transformer_layer_spec=layers,
                mtp_block_spec=mtp_block_spec(config, layers, vp_stage=vp_stage),
                vocab_size=MODEL.vocab_size,
                max_sequence_length=MODEL.max_position_embeddings,
                pre_process=model_stage == 0,
                post_process=model_stage == placement.depth - 1,
                share_embeddings_and_output_weights=False,
                position_embedding_type="rope",
                vp_stage=vp_stage,
            )
        )
    join_chunks(chunks, placement)
    return chunks


def step(schedule: Schedule, dispatch: dict[str, Any]) -> Step:
    """Losses of one step, and this rank's gradients."""
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    from dsv3_plugin.pipeline.executor import Executor

    with parallel(schedule) as placement:
        chunks = build_chunks(schedule, placement, dispatch)
        for chunk in chunks:
            chunk.config.finalize_model_grads_func = finalize_model_grads
        wrapped = [
            DistributedDataParallel(chunk.config, DistributedDataParallelConfig(), chunk)
            for chunk in chunks
        ]
        for chunk in wrapped:
            chunk.zero_grad_buffer()
        count = schedule.num_micro_batches
        reports = Executor(lambda _: schedule)(
            forward_step_func=forward_step,
            data_iterator=[batches(count) for _ in wrapped],
            model=wrapped,
            num_microbatches=count,
            seq_length=SEQ,
            micro_batch_size=1,
        )
        gradients = {
            f"chunk {index}: {name}": parameter.main_grad.clone()
            for index, chunk in enumerate(chunks)
            for name, parameter in chunk.named_parameters()
        }
    return [float(report["lm loss"]) for report in reports], gradients


def taken_apart(schedule: Schedule) -> Schedule:
    """The same computations, those of a pair one after the other."""
    rows: list[list[Compute]] = [[] for _ in range(schedule.pp)]
    for rank, _, part in schedule.parts():
        rows[rank].append(part)
    return Schedule("apart", tuple(map(tuple, rows)))


def every_schedule(rank: int) -> dict[str, tuple[Step, Step]]:
    """By case: upstream's step and ours; FP8 without pairs and with them.

    What FP8 itself loses is not seen here but in test_dispatch_moe_layer: where so few tokens go
    to an expert, a choice of the router that tips over weighs more.
    """
    from megatron.core.tensor_parallel import mappings
    from megatron.core.transformer.moe import token_dispatcher

    from dsv3_plugin.dispatch.alltoall import AllToAll
    from dsv3_plugin.upstream.alltoall_on_cpu import maybe_move_tensor_to_cpu

    mappings._AllToAll = AllToAll
    token_dispatcher.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu(
        token_dispatcher.maybe_move_tensor_to_cpu
    )
    steps = {}
    for name, schedule in SCHEDULES.items():
        upstreams = step(schedule, {"kind": "alltoall"})
        steps[name] = upstreams, step(schedule, TWO_HOP)
    pairs = SCHEDULES["dualpipe_v"]
    steps["fp8"] = step(taken_apart(pairs), FP8), step(pairs, FP8)
    return steps


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Step, Step]]]:
    return run_ranks(4, every_schedule, scratch=tmp_path_factory.mktemp("ranks"), timeout_s=240)


@pytest.mark.parametrize("name", [*SCHEDULES, "fp8"])
def test_loss_and_gradients_are_upstreams_and_fp8s_those_without_pairs(ranks, name):
    for rank in ranks:
        (losses, expected), (ours, gradients) = rank[name]
        assert ours == pytest.approx(losses, rel=1e-6)
        for parameter, gradient in expected.items():
            # FP32: the order of additions differs in every layer.
            error = (gradients[parameter] - gradient).norm() / (gradient.norm() + 1e-12)
            assert float(error) < 1e-5, parameter
