"""Log-probabilities of answers under the model as it is, without a step."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, pipeline_parallel
from megatron.core.utils import get_model_config

from dsv3_plugin.data.batch import Batch, Sample, get_packs
from dsv3_plugin.model.rounded_once import rounded_once
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.rows import Text
from dsv3_plugin.stages import sft
from dsv3_plugin.stages.packed_answers import micro_batches_of
from dsv3_plugin.stages.pretrain import chunk_inputs
from dsv3_plugin.stages.temperature import divided_by


@torch.no_grad()
def of_texts(
    model: Sequence[torch.nn.Module], texts: Sequence[Text], recipe: Rl
) -> list[list[float]]:
    """Of each text's answer, token by token, all on all ranks.

    Each data-parallel rank computes a part; of a pipeline the stage that has the loss knows it.

    Args:
        model: a rank's chunks, in upstream's wrappers.
        texts: the same on all ranks.
        recipe: the run's.
    """
    batches, own = micro_batches_of(texts, recipe), {}
    for chunk in model:
        chunk.eval()  # else multi-token prediction would count this as training
    run_schedule = pipeline_parallel.get_forward_backward_func()
    run_schedule(
        forward_step_func=partial(_forward_step, own, recipe.rollouts.temperature),
        data_iterator=[iter(batches) for _ in model],
        model=[*model],
        num_microbatches=len(batches),
        seq_length=recipe.data.seq_length,
        micro_batch_size=recipe.training.micro_batch_size,
        forward_only=True,
        collect_non_loss_data=True,
    )
    for chunk in model:
        chunk.train()
    for group in (
        parallel_state.get_pipeline_model_parallel_group(),
        parallel_state.get_data_parallel_group(),
    ):
        parts: list[dict[int, list[float]]] = [own] * group.size()
        dist.all_gather_object(parts, own, group=group)
        own = {number: logs for part in parts for number, logs in part.items()}
    return [own[number] for number in range(len(texts))]


def computed(chunk: torch.nn.Module, batch: Batch) -> Any:
    """What a chunk makes of answers, to the numbers that the embedded engine comes to."""
    device = next(chunk.parameters()).device
    with rounded_once(get_model_config(chunk), device):
        return sft.computed(chunk, batch)


def _forward_step(
    own: dict[int, list[float]],
    temperature: float,
    samples: Iterator[Sample],
    model: torch.nn.Module,
) -> tuple[Any, Any]:
    """One forward pass of a model chunk; what the last makes of answers is added to `own`."""
    sample = next(samples)
    with divided_by(model, temperature):
        output = computed(model, get_packs(iter([sample]), chunk_inputs(model)))
    answers = sample["answers"].flatten()

    def look(losses: torch.Tensor, **_: Any) -> None:
        learned = answers >= 0
        logs = -losses.flatten()[learned.to(losses.device)]
        for number, log in zip(answers[learned].tolist(), logs.tolist(), strict=True):
            own.setdefault(number, []).append(log)

    return output, look
