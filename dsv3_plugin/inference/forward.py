"""A model's layers over the rows of a batch, with cached latents.

The modules are the trainer's own, their parameters read where they lie: what training changes is
what the next step computes with. Upstream's `forward` of a layer is not called: it wants rectangles
[s, b, h], and every sequence here is at another position.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import MLATransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import unwrap_model
from torch import Tensor, nn

from dsv3_plugin.dispatch.moe_layer import MoELayer
from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.attention import Rotation, attend
from dsv3_plugin.inference.batch import Batch
from dsv3_plugin.inference.cache import LatentCache
from dsv3_plugin.inference.company import Company, ExpertRanks
from dsv3_plugin.inference.experts import moe, swiglu
from dsv3_plugin.model.attention import LatentAttention


def require_computable(config: MLATransformerConfig) -> None:
    """Look whether an engine can compute with a model's modules as they are divided.

    Raises:
        UserError: it cannot.
    """
    if config.transformer_impl != "local":
        raise UserError(
            f"The engine computes with torch's modules: build the model with backend: local, not "
            f"{config.transformer_impl}."
        )
    for name in (
        "tensor_model_parallel_size", "context_parallel_size", "expert_tensor_parallel_size",
    ):  # fmt: skip
        if (getattr(config, name) or 1) > 1:
            raise UserError(
                f"The engine computes a model that is whole, or divided by pipeline and by "
                f"experts, and this one is divided by {name} {getattr(config, name)}: load it "
                f"without."
            )


@dataclass(frozen=True)
class Stage:
    """Layers that a rank has one after another.

    Attributes:
        chunk: the module.
        before, after: places in the pipeline that hidden states come from and go to; None where
            they begin or end, or stay.
    """

    chunk: GPTModel
    before: int | None = None
    after: int | None = None


class ModelParts:
    """What of a model this rank has: all of it, or stages of a pipeline wherever they lie.

    Args:
        model: a whole model, or this rank's chunks as the trainer holds them. Of the two copies of
            DualPipe the first is taken.

    Attributes:
        stages: in the model's order.
        config: upstream's.
        head: the chunk that ends the model; None: another rank has it.
        company: who has the rest.
        layers: decoder layers of this rank, in the model's order.

    Raises:
        UserError: it is divided in a way that cannot be computed here, or is of other modules.
    """

    def __init__(self, model: nn.Module | Sequence[nn.Module]) -> None:
        chunks = [unwrap_model(c) for c in (model if isinstance(model, Sequence) else [model])]
        self.config: MLATransformerConfig = chunks[0].config
        require_computable(self.config)
        self.device = next(chunks[0].parameters()).device
        self.stages, head = _stages(chunks, self.config)
        self.layers = [layer for stage in self.stages for layer in stage.chunk.decoder.layers]
        self.company = Company.of(self.config, head, self.device)
        last = self.stages[-1].chunk
        self.head = last if last.post_process else None
        experts = self.company.experts
        self.expert_ranks = None if experts is None else ExpertRanks(experts)

    @property
    def chunks(self) -> list[GPTModel]:
        """The modules of the stages."""
        return [stage.chunk for stage in self.stages]

    @property
    def moe_layers(self) -> list[int]:
        """Numbers in the model, from 1, of this rank's layers that route."""
        return [layer.layer_number for layer in self.layers if isinstance(layer.mlp, MoELayer)]

    @property
    def predictors(self) -> int:
        """Layers of multi-token prediction that this rank has."""
        return len(getattr(getattr(self.head, "mtp", None), "layers", ()))

    def rotation(self, length: int) -> Rotation | None:
        """Of so many positions; None where this rank has no layer."""
        modules = (module for chunk in self.chunks for module in chunk.modules())
        attention = next((m for m in modules if isinstance(m, LatentAttention)), None)
        if attention is None:
            return None
        return Rotation.up_to(attention, length, self.config.params_dtype)

    def hidden_states(
        self, batch: Batch, rotation: Rotation | None, cache: LatentCache
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The main model's last hidden states, and where its tokens went.

        Returns:
            [t, h] after the final norm, None where another rank has them; of each MoE layer of this
            rank the experts of all rows, [t, top-k].
        """
        self.expect(batch)
        turned = None if rotation is None else rotation.of(batch.positions)
        experts: list[Tensor] = []
        hidden, number = None, 0
        for stage in self.stages:
            if stage.chunk.pre_process:
                hidden = F.embedding(batch.ids, stage.chunk.embedding.word_embeddings.weight)
            elif stage.before is not None:
                hidden = self._received(len(batch.ids), stage.before)
            for layer in stage.chunk.decoder.layers:
                hidden, chosen = layer_output(
                    layer, hidden, batch, turned, cache, number, self.expert_ranks
                )
                number += 1
                if chosen is not None:
                    experts.append(chosen)
            if stage.chunk.decoder.final_layernorm is not None:
                hidden = stage.chunk.decoder.final_layernorm(hidden)
            if stage.after is not None:
                self._send(hidden, stage.after)
        return (None if self.head is None else hidden), experts

    def expect(self, batch: Batch) -> None:
        """Say to the other ranks with experts how many rows come."""
        if self.expert_ranks is not None:
            self.expert_ranks.expect(len(batch.ids), self.device)

    def of_all_layers(self, mine: Tensor) -> Tensor:
        """Where tokens went in all layers of the model that route, [t, MoE layers, top-k].

        Args:
            mine: in those of this rank; the others of its pipeline ask for theirs at once.
        """
        of_layer = {
            layer: experts
            for layers, read in self.company.of_pipeline((self.moe_layers, mine))
            for layer, experts in zip(layers, read.unbind(1), strict=True)
        }
        with torch.inference_mode(False):  # for whoever trains on them
            return torch.stack([of_layer[layer].clone() for layer in sorted(of_layer)], dim=1)

    def _received(self, rows: int, place: int) -> Tensor:
        config, group = self.config, self.company.pipeline
        hidden = torch.empty(
            rows, config.hidden_size, dtype=config.params_dtype, device=self.device
        )
        if rows:
            dist.recv(hidden, group=group, group_src=place)
        return hidden

    def _send(self, hidden: Tensor, place: int) -> None:
        if len(hidden):
            dist.send(hidden.contiguous(), group=self.company.pipeline, group_dst=place)


def _stages(chunks: list[GPTModel], config: MLATransformerConfig) -> tuple[list[Stage], int]:
    """A rank's chunks with who is before and behind them, and who has the last."""
    if config.pipeline_model_parallel_size == 1:
        return [Stage(chunk) for chunk in chunks], 0
    size = config.pipeline_model_parallel_size
    rank = parallel_state.get_pipeline_model_parallel_rank()
    placement = getattr(config.pipeline_model_parallel_layout, "placement", None)
    if placement is None:  # upstream's own: in turns
        mine = [rank + size * number for number in range(len(chunks))]
        holders = list(range(size)) * len(chunks)
    else:
        mine = list(placement.chunks[rank])
        holders = [placement.rank_of(stage) for stage in range(placement.depth)]
    stages = []
    for number, chunk in sorted(zip(mine, chunks, strict=True), key=lambda pair: pair[0]):
        if number < len(holders):  # not of a second copy
            around = (
                holders[other] if 0 <= other < len(holders) and holders[other] != rank else None
                for other in (number - 1, number + 1)
            )
            stages.append(Stage(chunk, *around))
    return stages, holders[-1]


def layer_output(
    layer: TransformerLayer,
    hidden: Tensor,
    batch: Batch,
    rotation: Rotation,
    cache: LatentCache,
    number: int,
    ranks: ExpertRanks | None,
) -> tuple[Tensor, Tensor | None]:
    """A transformer layer of rows [t, h]: its output, and the experts of an MoE layer."""
    if batch.groups:
        normed = layer.input_layernorm(hidden)
        hidden = hidden + attend(layer.self_attention, normed, batch, rotation, cache, number)
    normed, chosen = layer.pre_mlp_layernorm(hidden), None
    if isinstance(layer.mlp, MoELayer):
        added, chosen = moe(layer.mlp, normed, ranks)
    else:
        added = swiglu(layer.mlp, normed)
    return hidden + added, chosen


def logits(model: GPTModel, hidden: Tensor) -> Tensor:
    """FP32 logits [rows, vocab] of hidden states [rows, h]."""
    tied = model.share_embeddings_and_output_weights
    weight = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
    if not hidden.is_cuda and 1 < len(hidden) < 4:
        # MKL reads a wide matrix once for two or three columns, and slower for as many rows: 4,096
        # x 192 in FP32 out of memory take 0.28 ms for 0.59. So many does judging guesses have.
        return torch.mm(weight, hidden.t()).t().contiguous().float()
    return F.linear(hidden, weight).float()
