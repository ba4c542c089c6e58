"""Samples in packs, by the stage's own forward step, and each of them alone.

What ranks run for test_packs.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Seen:
    """What the places of a sample gave, as far as they are this rank's.

    Attributes:
        positions: int64 `[t]`, in the sample.
        losses, logits: of the next token, `[t]` (zero where it is not learned) and `[t, vocab]`.
        ahead_losses, ahead_logits: of the token after it; of no meaning at the last two places.
    """

    positions: torch.Tensor
    losses: torch.Tensor
    logits: torch.Tensor
    ahead_losses: torch.Tensor
    ahead_logits: torch.Tensor


class Watched:
    """The stage's forward step, and what every sample gave in it.

    Args:
        chunks: of the model, wrapped for training.
    """

    def __init__(self, chunks: Sequence[torch.nn.Module]) -> None:
        self.samples: dict[str, Seen] = {}
        self.counts: dict[str, torch.Tensor] = {}
        self._made: dict[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for chunk in chunks:
            chunk.config.finalize_model_grads_func = self.finish
            if chunk.module.post_process:
                self._watch(chunk.module)

    def _watch(self, module: torch.nn.Module) -> None:
        """Keep what the loss is computed of: first of what is predicted ahead, then of the next."""
        compute, made = module.compute_language_model_loss, []

        def computed(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            losses = compute(labels, logits)
            made.append((logits.detach()[:, 0], losses.detach()[0]))
            return losses

        module.compute_language_model_loss = computed
        self._made[module] = made

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *error: object) -> None:
        for module in self._made:
            del module.compute_language_model_loss

    def __call__(self, samples: Iterator[Any], model: torch.nn.Module) -> Any:
        from dsv3_plugin.stages.sft import forward_step

        row = next(samples)
        output, loss_of = forward_step(iter([row]), model)

        def loss(losses: torch.Tensor) -> Any:
            (ahead_logits, ahead), (logits, _) = self._made[getattr(model, "module", model)][-2:]
            batch = loss_of.args[0]
            masked = (losses.detach() * batch.loss_mask)[0]
            for number, name in enumerate(names_in(row)):
                here = batch.boundaries.numbers == number
                if not here.any():  # padding, or another rank's
                    continue
                each = (batch.position_ids[0], masked, logits, ahead, ahead_logits)
                self.samples[name] = Seen(*(one[here].clone() for one in each))
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


def names_in(row: Any) -> list[str]:
    """What samples of a micro-batch are called: their tokens, and which of them are learned."""
    begins = (row["position_ids"].flatten() == 0).nonzero().flatten().tolist()
    tokens, mask, padding = (
        row[key].flatten().tensor_split(begins[1:])
        for key in ("tokens", "loss_mask", "padding_mask")
    )
    return [
        f"{ids[~filled].tolist()} {[*map(int, learned[~filled])]}"
        for ids, learned, filled in zip(tokens, mask, padding, strict=True)
    ]


def _layer_number(chunk: torch.nn.Module, name: str) -> int:
    module = getattr(chunk, "module", chunk)
    return module.get_submodule(name).layer_number


class KeptModel:
    """A whole model in this process that every step finds as it was built."""

    def __init__(self) -> None:
        self._model = whole_model(**SETTINGS)
        _prefer_few_tokens([self._model])
        self._buffers = {name: data.clone() for name, data in self._model.named_buffers()}

    def step(
        self, packs: Sequence[Sequence[Sample]], room: int | None, together_: int = 1
    ) -> dict[str, Any]:
        """A step on rows of samples (see `rows`), so many rows in a micro-batch."""
        from megatron.core.pipeline_parallel.schedules import forward_backward_no_pipelining

        for name, data in self._model.named_buffers():
            data.copy_(self._buffers[name])
        self._model.zero_grad_buffer()
        with Watched([self._model]) as watched:
            reports = forward_backward_no_pipelining(
                forward_step_func=watched,
                data_iterator=together(rows(packs, room), together_),
                model=self._model,
                num_microbatches=-(-len(packs) // together_),
                seq_length=0,
                micro_batch_size=1,
            )
        return _answer(watched, reports, gradients_of([self._model]))


def alone(samples: Sequence[Sample]) -> dict[str, Any]:
    """Every sample in a row of its own, as long as it is, in one process."""
    from megatron.core import parallel_state

    answer = KeptModel().step([[sample] for sample in samples], None)
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
    """The same in packs, by the executor on this rank's chunks, evaluated before."""
    from megatron.core import parallel_state

    from dsv3_plugin.pipeline.executor import Executor
    from dsv3_plugin.stages.sft import forward_step

    chunks = chunks_of(schedule, context, expert, **SETTINGS, **settings)
    _prefer_few_tokens(chunks)
    multiple = 2 * context if context > 1 else 1
    executor = Executor(lambda count: schedule)

    def run(forward_step_func: Any, **how: Any) -> Any:
        return executor(
            forward_step_func=forward_step_func,
            data_iterator=[together(rows(packs, room, multiple), together_) for _ in chunks],
            model=chunks,
            num_microbatches=len(packs) // together_,
            seq_length=room * together_,
            micro_batch_size=1,
            **how,
        )

    for chunk in chunks:
        chunk.eval()
    evaluated = run(forward_step, forward_only=True)
    for chunk in chunks:
        chunk.train()
    with Watched(chunks) as watched:
        answer = _answer(watched, run(watched), gradients_of(chunks))
    answer["drafts"] = [report["draft acceptance"] for report in evaluated]
    for number in (*answer["reports"], *answer["drafts"]):
        torch.distributed.all_reduce(number, group=parallel_state.get_context_parallel_group())
    answer["parts"] = {name: expert_part(name) for name in answer["gradients"]}
    parallel_state.destroy_model_parallel()
    return answer


@torch.no_grad()
def _prefer_few_tokens(chunks: Sequence[torch.nn.Module]) -> None:
    """So that a draft is now and then the model's own choice, by chance."""
    for chunk in chunks:
        if chunk.module.post_process:
            chunk.module.output_layer.weight[4:] *= 0.1


def _answer(watched: Watched, reports: Any, gradients: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "samples": watched.samples,
        "counts": watched.counts,
        "gradients": gradients,
        "reports": [report["lm loss"] for report in reports],
    }
