"""Building a rank's chunks where a placement puts them.

Upstream derives what a chunk holds from its rank and virtual stage, in interleaved order. It asks a
layout object for that, so a layout that answers for another order (`PlacedLayout`) places chunks
anywhere: layer numbers, dense or MoE, final norm, MTP and checkpoint keys all follow.

Three things remain. First and last stage have to be told who they are (`PlacedBuilder`). Where both
lie on one rank, MTP's embedding is the first stage's own, one parameter with one gradient, as in
DeepSeek-V3 (arXiv 2412.19437, section 3.2.1). And the second copy of the model that DualPipe keeps
must not be saved, nor counted in the gradient's norm.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.module import Float16Module, float16_to_fp32
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

from dsv3_plugin.data.batch import StageInputs
from dsv3_plugin.pipeline.replicas import Replicas
from dsv3_plugin.pipeline.split_backward import let_weights_wait
from dsv3_plugin.schedules.placement import Placement


class PlacedLayout(PipelineParallelLayerLayout):
    """Upstream's layout object with a placement of ours behind it.

    Args:
        text: the stages of the model in upstream's notation.
        placement: which of them each rank's chunks are.
    """

    def __init__(self, text: str, placement: Placement) -> None:
        self.input_data = text
        self.placement = placement
        self.stages = self.parse_str_to_list(text)
        # Otherwise a stage of the schedule would stand for another one of the model.
        assert placement.depth == len(self.stages), (placement.depth, text)
        # Read by upstream as layout[pp_rank][vp_stage].
        self.layout = [
            [self.stages[placement.model_stage(stage)] for stage in chunks]
            for chunks in placement.chunks
        ]
        self.flatten_layout = [layer for stage in self.stages for layer in stage]
        self.pipeline_model_parallel_size = len(placement.chunks)
        self.virtual_pipeline_model_parallel_size = placement.chunks_per_rank

    def __deepcopy__(self, memo: dict[int, Any]) -> "PlacedLayout":
        return self  # immutable, and configurations are copied often

    def validate_layer_layout(self, num_layers: int, mtp_num_layers: int) -> bool:
        """Upstream's question whether MTP stands alone: here it never does.

        (Upstream would otherwise exchange shapes before every message.)
        """
        return False

    def inputs(self, vp_stage: int | None) -> StageInputs:
        """What a chunk of this rank reads of a batch."""
        rank = parallel_state.get_pipeline_model_parallel_rank()
        layers = self.layout[rank][vp_stage or 0]
        ahead = LayerType.mtp in layers
        return StageInputs(
            tokens=LayerType.embedding in layers or ahead, labels=LayerType.loss in layers or ahead
        )

    def get_layer_offset(
        self,
        layer_type: LayerType = LayerType.decoder,
        vp_stage: int | None = None,
        pp_rank: int | None = None,
    ) -> int:
        """How many layers of a type all stages before this chunk's hold."""
        if pp_rank is None:
            pp_rank = parallel_state.get_pipeline_model_parallel_rank()
        stage = self.placement.model_stage(self.placement.chunks[pp_rank][vp_stage or 0])
        return sum(before.count(layer_type) for before in self.stages[:stage])


class PlacedModelConfig(GPTModelConfig):
    """Upstream's model configuration; chunks are built by `PlacedBuilder`."""

    builder: ClassVar[str] = "dsv3_plugin.pipeline.chunks.PlacedBuilder"


def place(model: PlacedModelConfig, layout: PlacedLayout) -> None:
    """Make a model configuration build its chunks where the layout says, in place."""
    config = model.transformer
    config.pipeline_model_parallel_layout = layout
    chunks = layout.placement.chunks_per_rank
    config.virtual_pipeline_model_parallel_size = chunks if chunks > 1 else None
    config.mtp_standalone = False
    let_weights_wait(config)
    model.pre_wrap_hooks.append(functools.partial(join_chunks, placement=layout.placement))


class PlacedBuilder(GPTModelBuilder):
    """Upstream's builder, which is told what is first and last."""

    def build_distributed_models(self, *args: Any, **kwargs: Any) -> list[GPTModel]:
        """Build this rank's chunks, each in upstream's wrappers."""
        kwargs.setdefault("mixed_precision_wrapper", PlacedFloat16Module)
        return super().build_distributed_models(*args, **kwargs)

    def build_model(
        self,
        pg_collection: ProcessGroupCollection,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> GPTModel:
        """Build one chunk of this rank."""
        placement = self._model_config.transformer.pipeline_model_parallel_layout.placement
        stage = placement.chunks[pg_collection.pp.rank()][vp_stage or 0]
        model_stage = placement.model_stage(stage)
        return super().build_model(
            pg_collection,
            pre_process=model_stage == 0,
            post_process=model_stage == placement.depth - 1,
            vp_stage=vp_stage,
        )


class PlacedFloat16Module(Float16Module):
    """Upstream's wrapper of a chunk in BF16 or FP16; the last stage's output alone is FP32.

    Upstream takes for the last stage what is last in interleaved order. Elsewhere that chunk has to
    send its hidden states as they are, and the loss arises in another.
    """

    def forward(self, *inputs: Any, fp32_output: bool = True, **kwargs: Any) -> Any:
        """As upstream's."""
        outputs = super().forward(*inputs, fp32_output=False, **kwargs)
        is_last = fp32_output and self.module.post_process
        return float16_to_fp32(outputs) if is_last else outputs


def join_chunks(chunks: list[GPTModel], placement: Placement) -> list[GPTModel]:
    """Share the embedding between a rank's chunks, and mark the chunks that are copies.

    Chunks that have a replica on another rank get the attribute `replicas`, and equal weights.
    """
    owner = next((chunk for chunk in chunks if chunk.pre_process), None)
    for chunk in chunks:
        if owner is not None and chunk.mtp_process and chunk is not owner:
            _borrow_embedding(chunk, owner)
    rank = parallel_state.get_pipeline_model_parallel_rank()
    for chunk, stage in zip(chunks, placement.chunks[rank], strict=True):
        if placement.is_copy(stage):
            _mark_as_copy(chunk)
    if placement.copies == 2:
        replicas = Replicas(placement)
        replicas.equal_weights(chunks)
        for chunk in chunks:
            chunk.replicas = replicas
    return chunks


def _borrow_embedding(borrower: GPTModel, owner: GPTModel) -> None:
    """Let a chunk use another's embedding without holding a parameter of its own.

    An attribute of the object, not a submodule: parameters, gradients, optimizer and checkpoint see
    the embedding once, in the chunk that owns it.
    """
    del borrower.embedding
    object.__setattr__(borrower, "embedding", owner.embedding)

    def without_embedding(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def sharded_state_dict(*args: Any, **kwargs: Any) -> Any:
            # Asked with MTP, upstream would tie an embedding that this chunk does not have.
            borrower.mtp_process = False
            try:
                return original(*args, **kwargs)
            finally:
                borrower.mtp_process = True

        return sharded_state_dict

    borrower.sharded_state_dict = without_embedding(borrower.sharded_state_dict)


def _mark_as_copy(chunk: GPTModel) -> None:
    """Keep a second copy out of the gradient's norm and out of checkpoints' writing."""
    for parameter in chunk.parameters():
        parameter.shared = True  # upstream's word for: counted elsewhere

    def as_replica(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def sharded_state_dict(*args: Any, **kwargs: Any) -> Any:
            tensors = original(*args, **kwargs)
            for tensor in tensors.values():
                if hasattr(tensor, "replica_id"):
                    tensor.replica_id = _second(tensor.replica_id)
            return tensors

        return sharded_state_dict

    chunk.sharded_state_dict = as_replica(chunk.sharded_state_dict)


def _second(replica_id: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """A replica id that is not the main one; the first place counts pipeline copies."""
    if isinstance(replica_id, int):
        return replica_id + 1
    return (replica_id[0] + 1, *replica_id[1:])
