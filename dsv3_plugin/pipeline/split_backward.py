"""A backward in two halves: the gradient of the input now, those of the weights when asked for.

The layers of the local backend (`dsv3_plugin.model.linear`) and Transformer Engine's, built with
`delay_wgrad_compute`, both keep owed weight gradients in a queue per module, first in, first out.
TE's always do; so a whole backward there pays at once what it owes. When several micro-batches are
outstanding, paying the oldest instead of a particular one gives the same sum.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from dsv3_plugin.model.linear import WeightGradients


def let_weights_wait(config: TransformerConfig) -> None:
    """Have TE's layers built so that they leave weight gradients owed, in place.

    To be set past upstream's validation, which knows the flag only beside its own overlap, and as
    well in DistributedDataParallelConfig: what TE computes late it writes over `.grad`, and the
    hook that takes it from there must run each time. The local backend's layers need neither.
    """
    if config.transformer_impl == "transformer_engine":
        config.delay_wgrad_compute = True


class SplitBackward:
    """The weight gradients of one chunk."""

    def __init__(self, chunk: torch.nn.Module) -> None:
        modules = list(chunk.modules())
        self._local: list[WeightGradients] = [
            module.weight_gradients
            for module in modules
            if isinstance(getattr(module, "weight_gradients", None), WeightGradients)
        ]
        self.of_te = [module for module in modules if _postpones(module)]
        """TE's layers that leave their weight gradients owed."""
        for module in self.of_te:
            _keep_columns(module.wgrad_store)

    @contextmanager
    def keeping_weights_owed(self, owed: bool) -> Iterator[None]:
        """Run a backward inside: of the input alone (`owed`), or whole."""
        for gradients in self._local:
            gradients.postpone = owed
        yield
        if not owed:
            self._pay_te()

    def weights(self) -> None:
        """Compute the weight gradients of the oldest outstanding backward."""
        for gradients in self._local:
            gradients.pay_oldest()
        self._pay_te()

    def _pay_te(self) -> None:
        for module in self.of_te:
            if module.wgrad_store.context.qsize():  # where nothing is owed, TE raises
                module.backward_dw()


def _postpones(module: torch.nn.Module) -> bool:
    """Whether a module is one of TE's that leaves its weight gradient owed."""
    store = getattr(module, "wgrad_store", None)
    return store is not None and store.delay_wgrad_compute()


def _keep_columns(store: Any) -> None:
    """Let what waits in TE's queue be no more than the product for the weights reads.

    In FP8 the gradient of a layer's output is quantised along rows, for the gradient of its input,
    and along columns, for that of its weights. The first is through when the second is put into the
    queue, and TE would keep both there: in DeepSeek-V3 0.5 to 0.7 GB of a layer and micro-batch.
    """
    if not isinstance(store.put, _PutColumns):
        store.put = _PutColumns(store.put)


class _PutColumns:
    """`WeightGradStore.put` that keeps inputs and gradients along columns alone."""

    def __init__(self, put: Callable[[list[Any], Any], None]) -> None:
        self._put = put

    def __call__(self, tensor_list: list[Any], func: Any) -> None:
        for operand in tensor_list[:2]:  # the input and the gradient, of one layer or each expert
            for tensor in operand if isinstance(operand, list) else [operand]:
                if hasattr(tensor, "update_usage"):  # quantised
                    tensor.update_usage(rowwise_usage=False, columnwise_usage=True)
        self._put(tensor_list, func)
