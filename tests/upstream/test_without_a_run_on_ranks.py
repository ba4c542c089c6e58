"""Checkpoints of several ranks with the table of patches applied and no run of ours.

Upstream's own GPT, saved by ranks that divide it one way and loaded by ranks that divide it another
way: by `dist_checkpointing`, which knows nothing of Megatron's global arguments, synchronously and
not; and by `megatron.training.checkpointing`, with a layout of pipeline stages.
"""

import contextlib
import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.gloo_ranks import run_ranks
from tests.whole_tensors import Part, parts, whole


class Division(NamedTuple):
    """How ranks divide a model."""

    tensor: int = 1
    pipeline: int = 1
    virtual: int | None = None
    layout: list[list[str]] | None = None


WAYS = {
    1: (Division(), Division()),
    2: (Division(tensor=2), Division(pipeline=2)),
    8: (Division(tensor=2, pipeline=4), Division(tensor=4, pipeline=2)),
}
LAYOUTS = {
    1: (Division(), Division()),
    8: (
        Division(
            pipeline=4,
            virtual=2,
            layout=[
                ["embedding"], ["decoder"], ["decoder"], [],
                ["decoder"], [], ["decoder"], ["loss"],
            ],
        ),
        Division(
            pipeline=2,
            layout=[["embedding", "decoder"], ["decoder", "decoder", "decoder", "loss"]],
        ),
    ),
}  # fmt: skip


def apart_where_many(worlds: Iterable[int]) -> list[Any]:
    """A case for each number of ranks; apart from the rest where they are more than processors."""
    return [pytest.param(world, marks=[pytest.mark.long] if world > 2 else []) for world in worlds]


def built(division: Division) -> list[torch.nn.Module]:
    """This rank's stages of upstream's GPT, in groups made anew."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from tests.upstream.stock_gpt import stock_gpt

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(division.tensor, division.pipeline, division.virtual)
    model_parallel_cuda_manual_seed(3, force_reset_rng=True)
    return [
        stock_gpt(
            stage,
            tensor_model_parallel_size=division.tensor,
            pipeline_model_parallel_size=division.pipeline,
            virtual_pipeline_model_parallel_size=division.virtual,
            pipeline_model_parallel_layout=division.layout,
        )
        for stage in (range(division.virtual) if division.virtual else [None])
    ]


def forget(model: list[torch.nn.Module]) -> None:
    """What is not loaded shows."""
    with torch.no_grad():
        for stage in model:
            for parameter in stage.parameters():
                parameter.fill_(7.0)


@contextlib.contextmanager
def children_allowed() -> Iterator[None]:
    """Upstream holds the queue of its writers' answers in a process of its own."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    multiprocessing.current_process().daemon = False
    try:
        yield
    finally:
        if filesystem_async._results_queue is not None:
            filesystem_async._results_queue._manager.shutdown()


def by_dist_checkpointing(
    rank: int, folder: Path, there: Division, back: Division
) -> list[tuple[list[Part], list[Part]]]:
    """What this rank saved and what it loaded, synchronously and not."""
    import dsv3_plugin

    dsv3_plugin.register()
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

    answers = []
    with children_allowed():
        for asynchronous in (False, True):
            place = folder / f"asynchronous {asynchronous}"
            place.mkdir(exist_ok=True)
            (model,) = built(there)
            request = dist_checkpointing.save(
                model.sharded_state_dict(),
                str(place),
                async_sharded_save=asynchronous,
                async_strategy="mcore",
            )
            if asynchronous:
                calls = AsyncCallsQueue()
                calls.schedule_async_request(request)
                calls.maybe_finalize_async_calls(blocking=True)
                calls.close()
            saved = parts([model])
            (model,) = built(back)
            forget([model])
            model.load_state_dict(dist_checkpointing.load(model.sharded_state_dict(), str(place)))
            answers.append((saved, parts([model])))
    return answers


@pytest.mark.parametrize("world", apart_where_many(WAYS))
def test_what_is_saved_one_way_is_loaded_another_way(world, tmp_path):
    ranks = run_ranks(world, by_dist_checkpointing, tmp_path, *WAYS[world], scratch=tmp_path)
    for answers in zip(*ranks, strict=True):
        same([part for saved, _ in answers for part in saved],
             [part for _, loaded in answers for part in loaded])  # fmt: skip


def by_upstreams_training(
    rank: int, folder: Path, there: Division, back: Division
) -> tuple[list[Part], list[Part]]:
    """What this rank saved and what it loaded with Megatron's global arguments."""
    import dsv3_plugin

    dsv3_plugin.register()
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.training import arguments, checkpointing, global_vars

    sys.argv = ["a Megatron program"]
    settings = arguments.parse_args()
    settings.save = settings.load = str(folder)
    settings.num_layers, settings.hidden_size, settings.num_attention_heads = 4, 16, 4
    settings.async_save = False
    settings.async_strategy = "mcore"
    settings.ckpt_format, settings.use_dist_ckpt = "torch_dist", True
    settings.no_save_optim = settings.no_save_rng = True
    settings.no_load_optim = settings.no_load_rng = True
    settings.consumed_train_samples = settings.consumed_valid_samples = 0
    settings.skipped_train_samples = 0
    settings.dist_ckpt_strictness = "assume_ok_unexpected"
    settings.exit_on_missing_checkpoint = True
    settings.phase_transition_iterations = None
    settings.bf16 = settings.fp16 = False
    init_num_microbatches_calculator(0, None, 1, 1, 1)

    def divided(division: Division) -> list[torch.nn.Module]:
        settings.tensor_model_parallel_size = division.tensor
        settings.pipeline_model_parallel_size = division.pipeline
        settings.virtual_pipeline_model_parallel_size = division.virtual
        settings.pipeline_model_parallel_layout = division.layout
        global_vars.set_args(settings)
        return built(division)

    with children_allowed():
        model = divided(there)
        checkpointing.save_checkpoint(123, model, None, None, 456)
        saved = parts(model)
        model = divided(back)
        forget(model)
        iteration, _ = checkpointing.load_checkpoint(model, None, None, strict=False)
    assert iteration == 123
    return saved, parts(model)


@pytest.mark.parametrize("world", apart_where_many(LAYOUTS))
def test_a_checkpoint_of_one_layout_is_loaded_by_another(world, tmp_path):
    ranks = run_ranks(world, by_upstreams_training, tmp_path, *LAYOUTS[world], scratch=tmp_path)
    same([part for saved, _ in ranks for part in saved],
         [part for _, loaded in ranks for part in loaded])  # fmt: skip


def same(saved: list[Part], loaded: list[Part]) -> None:
    """Every tensor is whole, and what it was."""
    before, after = whole(saved), whole(loaded)
    assert after.keys() == before.keys()
    for key, tensor in before.items():
        assert not tensor.isnan().any(), key
        assert torch.equal(after[key], tensor), key
