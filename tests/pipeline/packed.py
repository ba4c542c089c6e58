"""Samples in packs, by the stage's own forward step, and each of them alone.

What ranks run for test_packs.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dsv3_plugin.schedules.actions import Schedule
from tests.pipeline.executed import chunks_of, expert_part, gradients_of, whole_model

Sample = tuple[list[int], list[int]]
"""Token ids, and which of them are learned."""

SETTINGS = {"calculate_per_token_loss": True}


def rows(packs: Sequence[Sequence[Sample]], room: int | None, multiple: int = 1) -> Iterator[Any]:
    """Each pack as the dataset makes it, `[1, s]`; `room` None: as long as what is in it."""
    from megatron.core.datasets.utils import Split

    from dsv3_plugin.data.chat.packs import PackedConversations

    for pack in packs:
        places = [-(-len(ids) // multiple) * multiple for ids, _ in pack]
        rows = PackedConversations(
            _InOrder(pack), _OnePack(len(pack), room or sum(places), multiple), Split.train,
            samples=1, number=None, padding=0,
        )  # fmt: skip
        yield {key: value[None] for key, value in rows[0].items()}


def together(batches: Iterator[Any], size: int) -> Iterator[Any]:
    """Micro-batches of several rows."""
    batches = list(batches)
    for start in range(0, len(batches), size):
        some = batches[start : start + size]
        yield {key: torch.cat([each[key] for each in some]) for key in some[0]}


class _InOrder:
    def __init__(self, pack: Sequence[Sample]) -> None:
        import numpy

        self._samples = [
            (numpy.array(ids, numpy.int32), numpy.array(learned, numpy.uint8))
            for ids, learned in pack
        ]

    def __getitem__(self, number: int) -> Any:
        return self._samples[number]


class _OnePack:
    def __init__(self, count: int, room: int, multiple: int) -> None:
        self.room, self.multiple, self._count = room, multiple, count

    def epoch(self, number: int) -> Any:
        import numpy

        from dsv3_plugin.data.packing import Packs

        return Packs(numpy.arange(self._count), numpy.array([0, self._count]))


class Watched:
    """The stage's forward step, and what every sample's tokens lost in it, in order."""

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.counts: dict[str, torch.Tensor] = {}

    def __call__(self, samples: Iterator[Any], model: torch.nn.Module) -> Any:
        from dsv3_plugin.stages.sft import forward_step

        output, loss_of = forward_step(samples, model)

        def loss(losses: torch.Tensor) -> Any:
            mask = loss_of.args[0]
            self.losses.append((losses.detach() * mask).flatten())
            return loss_of(losses)

        return output, loss

    def finish(self, model: Any, *args: Any, **kwargs: Any) -> None:
        """Upstream's end of a step, and before it how often each expert was chosen."""
        from megatron.core import parallel_state
        from megatron.core.distributed import finalize_model_grads

        chunks = model if isinstance(model, list) else [model]
        for chunk in chunks:
            for name, module in getattr(chunk, "module", chunk).named_modules():
                if hasattr(module, "local_tokens_per_expert"):
                    counts = module.local_tokens_per_expert.clone()
                    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
                    torch.distributed.all_reduce(counts, group=group)
                    layer = f"{'mtp ' * name.startswith('mtp')}{_layer_number(chunk, name)}"
                    self.counts[layer] = counts // parallel_state.get_data_parallel_world_size()
        finalize_model_grads(chunks, *args, **kwargs)


def _layer_number(chunk: torch.nn.Module, name: str) -> int:
    module = getattr(chunk, "module", chunk)
    return module.get_submodule(name).layer_number


def alone(samples: Sequence[Sample]) -> dict[str, Any]:
    """Every sample in a row of its own, as long as it is, in one process."""
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel.schedules import forward_backward_no_pipelining

    model, watched = whole_model(**SETTINGS), Watched()
    model.config.finalize_model_grads_func = watched.finish
    reports = forward_backward_no_pipelining(
        forward_step_func=watched,
        data_iterator=rows([[sample] for sample in samples], None),
        model=model,
        num_microbatches=len(samples),
        seq_length=0,
        micro_batch_size=1,
    )
    answer = _answer(watched, reports, gradients_of([model]))
    parallel_state.destroy_model_parallel()
    return answer


def in_packs(
    packs: Sequence[Sequence[Sample]],
    room: int,
    schedule: Schedule,
    *,
    together_: int = 1,
    context: int = 1,
    expert: int = 1,
    **settings: Any,
) -> dict[str, Any]:
    """The same in packs, by the executor on this rank's chunks."""
    from megatron.core import parallel_state

    from dsv3_plugin.pipeline.executor import Executor

    chunks = chunks_of(schedule, context, expert, **SETTINGS, **settings)
    watched = Watched()
    for chunk in chunks:
        chunk.config.finalize_model_grads_func = watched.finish
    multiple = 2 * context if context > 1 else 1
    reports = Executor(lambda count: schedule)(
        forward_step_func=watched,
        data_iterator=[together(rows(packs, room, multiple), together_) for _ in chunks],
        model=chunks,
        num_microbatches=len(packs) // together_,
        seq_length=room * together_,
        micro_batch_size=1,
    )
    answer = _answer(watched, reports, gradients_of(chunks))
    for report in answer["reports"]:
        torch.distributed.all_reduce(report, group=parallel_state.get_context_parallel_group())
    answer["parts"] = {name: expert_part(name) for name in answer["gradients"]}
    parallel_state.destroy_model_parallel()
    return answer


def _answer(watched: Watched, reports: Any, gradients: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "losses": watched.losses,
        "counts": watched.counts,
        "gradients": gradients,
        "reports": [report["lm loss"] for report in reports],
    }
