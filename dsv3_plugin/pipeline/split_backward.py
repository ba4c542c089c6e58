"""A backward in two halves: the gradient of the input now, those of the weights when asked for.

The layers of the local backend (`dsv3_plugin.model.linear`) and Transformer Engine's, built with
`delay_wgrad_compute`, both keep owed weight gradients in a queue per module, first in, first out.
TE's always do; so a whole backward there pays at once what it owes. When several micro-batches are
outstanding, paying the oldest instead of a particular one gives the same sum.
"""

from collections.abc import Iterator
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

    @contextmanager
    def keeping_weights_owed(self, owed: bool) -> Iterator[None]:
        """Run a backward inside: of the input alone (`owed`), or whole."""
        for gradients in self._local:
            gradients.postpone = owed
        yield
        if owed:
            self._keep_half()
        else:
            self._pay_te()

    def weights(self) -> None:
        """Compute the weight gradients of the oldest outstanding backward."""
        for gradients in self._local:
            gradients.pay_oldest()
        self._pay_te()

    def _keep_half(self) -> None:
        """Let go of what the backward that just ran is alone in needing of a gradient in FP8.

        TE quantises it along rows for the gradient of the input and along columns for that of the
        weight, and its queue holds both: half as much again as a layer keeps for its backward.
        """
        for module in self.of_te:
            waiting = module.wgrad_store.context.queue
            if waiting:
                for tensor in _quantised(waiting[-1][0]):
                    tensor.update_usage(rowwise_usage=False)

    def _pay_te(self) -> None:
        for module in self.of_te:
            if module.wgrad_store.context.qsize():  # where nothing is owed, TE raises
                module.backward_dw()


def _quantised(tensors: Any) -> Iterator[Any]:
    """TE's tensors among these that are there along rows and along columns."""
    for tensor in tensors:
        if isinstance(tensor, list | tuple):
            yield from _quantised(tensor)
        elif hasattr(tensor, "get_usages") and all(tensor.get_usages().values()):
            yield tensor


def _postpones(module: torch.nn.Module) -> bool:
    """Whether a module is one of TE's that leaves its weight gradient owed."""
    store = getattr(module, "wgrad_store", None)
    return store is not None and store.delay_wgrad_compute()
