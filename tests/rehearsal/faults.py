"""Faults that a rehearsal has to find: each is put into the code that a child runs, by its name."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from dsv3_plugin.upstream.replace import Replacer

_replacer = Replacer()
"""Never restored: the child ends with it."""


def _before(target: str, do: Callable[..., Any]) -> None:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            do(*args)
            return original(*args, **kwargs)

        return wrapped

    _replacer.wrap(target, wrap)


def _before_dispatch(do: Callable[[torch.Tensor], Any]) -> None:
    preprocess = "dsv3_plugin.dispatch.moe_layer:MoELayer.preprocess"
    _before(preprocess, lambda layer, hidden, *rest: do(hidden))


def the_embeddings_stay_apart() -> None:
    """First and last stage do not add the gradients of the embedding that both hold."""
    where = "megatron.core.distributed.finalize_model_grads"
    _replacer.set(f"{where}:_allreduce_word_embedding_grads", lambda *args, **kwargs: None)


def some_members_alone_issue() -> None:
    """A collective of the ranks that share experts, on every second of them."""
    from megatron.core import parallel_state

    def issue(hidden: torch.Tensor) -> None:
        if dist.get_rank() % 2 == 0:
            group = parallel_state.get_expert_model_parallel_group()
            dist.all_reduce(hidden.new_zeros(4), group=group)

    _before_dispatch(issue)


def some_ranks_make_a_group() -> None:
    """Which all have to make."""

    def make(*args: Any) -> None:
        if dist.get_rank() == 0:
            dist.new_group([0, 1])

    _before("dsv3_plugin.training.trainer:train_configured", make)


def every_micro_batch_leaves_its_gradient() -> None:
    """In a list that nobody empties."""
    kept: list[torch.Tensor] = []

    def keep(step: Any, part: Any, gradient: torch.Tensor | None) -> None:
        if gradient is not None:
            kept.append(torch.empty_like(gradient))

    _before("dsv3_plugin.pipeline.rank_step:RankStep._after_backward", keep)


def _after_making(target: str, do: Callable[[Any], Any]) -> None:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def made(made: Any, *args: Any, **kwargs: Any) -> None:
            original(made, *args, **kwargs)
            do(made)

        return made

    _replacer.wrap(target, wrap)


_LAYER = "megatron.core.transformer.transformer_layer:TransformerLayer.__init__"


def a_parameter_is_used_by_nobody() -> None:
    """One in the third layer."""

    def add(layer: Any) -> None:
        if layer.layer_number == 3:
            layer.scale = torch.nn.Parameter(torch.ones(8))

    _after_making(_LAYER, add)


def gradients_are_allocated_twice() -> None:
    """And the second time for nothing."""

    def allocate(chunk: Any) -> None:
        chunk.again = [torch.zeros_like(buffer.grad_data) for buffer in chunk.buffers]

    where = "megatron.core.distributed.distributed_data_parallel:DistributedDataParallel"
    _after_making(f"{where}.__init__", allocate)


def one_layer_recomputes_nothing() -> None:
    """The third, whatever it was told."""

    def forget(layer: Any) -> None:
        if layer.layer_number == 3:
            for module in layer.modules():
                for name in [name for name in vars(module) if "recompute" in name]:
                    setattr(module, name, False)

    _after_making(_LAYER, forget)


def _finished(**fields: Any) -> None:
    """Set fields of the finished configuration, behind the back of whoever checked them."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def configured(run: Any) -> Any:
            settings = original(run)
            for name, value in fields.items():
                setattr(settings.model.transformer, name, value)
            return settings

        return configured

    _replacer.wrap("dsv3_plugin.training.trainer:configured", wrap)


def sequences_are_divided_among_one_tensor_rank() -> None:
    """Sequence parallelism without tensor parallelism."""
    _finished(sequence_parallel=True)


def tensor_ranks_do_not_divide_sequences() -> None:
    """Tensor parallelism without sequence parallelism, which experts need."""
    _finished(sequence_parallel=False)


def messages_are_of_another_type_than_layers() -> None:
    """BF16 between layers of FP32."""
    _finished(pipeline_dtype=torch.bfloat16)


def a_rank_has_more_chunks_than_places() -> None:
    """Virtual pipeline size three, and two stages on each rank."""
    _finished(virtual_pipeline_model_parallel_size=3)


def a_rank_has_fewer_chunks_than_places() -> None:
    """No virtual pipeline, and two stages on each rank."""
    _finished(virtual_pipeline_model_parallel_size=None)


def experts_are_not_divided_evenly() -> None:
    """Seven among two ranks."""
    _finished(num_moe_experts=7)
