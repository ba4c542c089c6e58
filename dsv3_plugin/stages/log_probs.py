"""Log-probabilities of answers under the model as it is, without a step."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from dsv3_plugin.data.batch import get_packs
from dsv3_plugin.recipe.rl import Rl
from dsv3_plugin.rollouts.rows import Text, micro_batches, packed
from dsv3_plugin.stages.pretrain import chunk_inputs
from dsv3_plugin.stages.sft import computed


@torch.no_grad()
def of_texts(
    model: Sequence[torch.nn.Module], texts: Sequence[Text], recipe: Rl
) -> list[list[float]]:
    """Of each text's answer, token by token; each data-parallel rank computes a part, all get all.

    Args:
        model: the whole of it, in upstream's wrappers.
        texts: the same on all ranks.
        recipe: the run's.
    """
    group = parallel_state.get_data_parallel_group()
    size = recipe.training.micro_batch_size
    rows = packed(texts, recipe.data.seq_length, size * group.size(), 0)
    [chunk] = model
    chunk.eval()  # else multi-token prediction would count this as training
    own: dict[int, list[float]] = {}
    for sample in micro_batches(rows, size, group.rank(), group.size()):
        batch = get_packs(iter([sample]), chunk_inputs(chunk))
        losses = computed(chunk, batch)
        answers = sample["answers"].flatten()
        for place in (answers >= 0).nonzero().flatten().tolist():
            own.setdefault(int(answers[place]), []).append(-float(losses.flatten()[place]))
    chunk.train()
    parts: list[dict[int, list[float]]] = [own] * group.size()
    dist.all_gather_object(parts, own, group=group)
    found = {number: logs for part in parts for number, logs in part.items()}
    return [found[number] for number in range(len(texts))]
