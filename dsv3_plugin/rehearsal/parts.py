"""Which part of a rank's memory a tensor is of: states by their place, the rest by their maker."""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
from megatron.core.transformer.multi_token_prediction import MultiTokenPredictionLayer
from megatron.core.utils import unwrap_model

from dsv3_plugin.dispatch.copies import Copies
from dsv3_plugin.dispatch.exchange import InFlight
from dsv3_plugin.model.experts import GroupedExperts
from dsv3_plugin.planner.plan import MemoryPart
from dsv3_plugin.rehearsal.storages import Storages
from dsv3_plugin.upstream.replace import Replacer

_DISPATCH = (
    "dispatch_preprocess",
    "token_dispatch",
    "dispatch_postprocess",
    "combine_preprocess",
    "token_combine",
    "combine_postprocess",
)
_SHARED = (
    "pre_forward_comm",
    "linear_fc1_forward_and_act",
    "linear_fc2_forward",
    "post_forward_comm",
)
_TE_LAYERS = tuple(
    f"transformer_engine.pytorch.module.{name}"
    for name in ("base", "linear", "layernorm_linear", "layernorm_mlp", "grouped_linear")
)
_TE_BLOCKS = "transformer_engine.pytorch.tensor.storage.float8_blockwise_tensor_storage"
_TE_PRODUCTS = "transformer_engine.pytorch.cpp_extensions.gemm"


def claim_states(storages: Storages, chunks: list[torch.nn.Module], optimizer: Any) -> None:
    """Say of weights, gradients and optimizer states what they are; all are there by now."""
    storages.claim("optimizer", _optimizer_states(optimizer))
    storages.claim("gradients", _gradients(chunks))
    storages.claim("weights", _weights(chunks))


def _weights(chunks: list[torch.nn.Module]) -> Iterator[torch.Tensor]:
    for chunk in unwrap_model(chunks):
        yield from chunk.parameters()
        yield from chunk.buffers()


def _gradients(chunks: list[torch.nn.Module]) -> Iterator[torch.Tensor]:
    for chunk in chunks:
        for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
            yield buffer.grad_data


def _optimizer_states(optimizer: Any) -> Iterator[torch.Tensor]:
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        for state in one.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))
        for group in one.optimizer.param_groups:
            yield from group["params"]


def tell_makers_apart(storages: Storages, replacer: Replacer) -> None:
    """Let what dispatchers, the head and quantisers of weights make count as their parts."""
    for owner, names in (
        *((dispatcher, _DISPATCH) for dispatcher in _subclasses(MoETokenDispatcher)),
        # Both ways, in a backward too, where no dispatcher is asked.
        (InFlight, ("_resume",)),
        (Copies, ("take", "sum")),
    ):
        for name in names:
            if name in vars(owner):
                _make_part(storages, replacer, owner, name, "dispatch_buffers")
    # A shared expert computes between the halves of a dispatch, and what it keeps is its own.
    for expert in (SharedExpertMLP, *_subclasses(SharedExpertMLP)):
        for name in _SHARED:
            if name in vars(expert):
                _make_part(storages, replacer, expert, name, "activations")
    _local_experts_keep_rows(storages, replacer)
    _make_part(storages, replacer, GPTModel, "_postprocess", "logits")
    # Called from there, and a layer as others are.
    _make_part(storages, replacer, MultiTokenPredictionLayer, "forward", "activations")
    for module in _TE_LAYERS:
        if module in sys.modules:
            _function_makes(storages, replacer, f"{module}:quantize_weight", "fp8_copies")
    if _TE_BLOCKS in sys.modules:  # of weights, which alone are in squares; late in a backward
        late = f"{_TE_BLOCKS}:Float8BlockwiseQTensorStorage._create_columnwise"
        _function_makes(storages, replacer, late, "fp8_copies")
    if _TE_PRODUCTS in sys.modules:
        workspace = f"{_TE_PRODUCTS}:get_cublas_workspace"
        _function_makes(storages, replacer, workspace, "allocator")


def _subclasses(cls: type) -> Iterable[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _make_part(
    storages: Storages, replacer: Replacer, owner: type, name: str, part: MemoryPart
) -> None:
    target = f"{owner.__module__}:{owner.__qualname__}.{name}"
    _function_makes(storages, replacer, target, part)


def _local_experts_keep_rows(storages: Storages, replacer: Replacer) -> None:
    """For their backward, as they arrived: what a dispatcher made is on its way no longer."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(experts: Any, rows: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
            storages.claim("activations", [rows])
            return original(experts, rows, *rest, **kwargs)

        return forward

    replacer.wrap(f"{GroupedExperts.__module__}:{GroupedExperts.__qualname__}.forward", wrap)


def _function_makes(storages: Storages, replacer: Replacer, target: str, part: MemoryPart) -> None:
    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with storages.as_part(part):
                return original(*args, **kwargs)

        return wrapped

    replacer.wrap(target, wrap)
