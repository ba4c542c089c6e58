"""Whether a model's weights are those that latents were computed with.

Whoever changes weights says so (`Engine.weights_changed`). What is forgotten, or written by who
knows of no engine, is found in two ways:

* before every step, at the cost of a small copy: parameters that autograd saw written to (an
  optimizer of torch's, a loaded state) or that lie elsewhere, and a few values of each, which an
  optimizer's step moves all of, also where it writes through `.data` or into a buffer behind them,
  as Megatron's do;
* before the first step after the engine had nothing to do, at the cost of reading all weights
  once: sums over the bits of each row, which no change of one value, nor of whole rows for each
  other, leaves as they were.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

_SAMPLED = 16
"""Values of a tensor that are looked at before every step. In BF16 a small step rounds most values
to what they were (with 8 bits, those that it moves by less than 1/512 of themselves), and a model
has hundreds of tensors."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Weights:
    """Tells when the weights of modules were written to.

    Args:
        modules: a model, or the parts of one that a rank has.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = [
            inner
            for module in modules
            for inner in module.modules()
            if inner._parameters or "expert_bias" in inner._buffers
        ]
        self._sums: list[int] | None = None
        self._look()

    def changed(self, *, thorough: bool) -> bool:
        """Whether they were, since this was asked the last time.

        Args:
            thorough: read all of them.
        """
        seen, sampled = self._seen, self._sampled
        self._look()
        found = seen != self._seen or not torch.equal(sampled, self._sampled)
        if found or thorough:
            sums, self._sums = self._sums, self._sums_of_rows()
            found |= sums is not None and sums != self._sums
        return found

    def _look(self) -> None:
        seen = tuple(value for t in self._tensors() for value in (t._version, t.data_ptr()))
        if getattr(self, "_seen", None) != seen:
            self._seen = seen
            self._samples = [_sample(t) for t in self._tensors() if t.is_contiguous()]
        self._sampled = torch.cat(self._samples)

    def _sums_of_rows(self) -> list[int]:
        return torch.stack([_sum_of_rows(tensor) for tensor in self._tensors()]).tolist()

    def _tensors(self) -> Iterator[Tensor]:
        for module in self._modules:
            yield from (p for p in module._parameters.values() if p is not None)
            if (bias := module._buffers.get("expert_bias")) is not None:
                yield bias


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as whole numbers, which are equal where NaN is not."""
    return tensor.detach().view(_BITS[tensor.element_size()])


def _sample(tensor: Tensor) -> Tensor:
    """A few values, as a view."""
    flat = _bits(tensor).view(-1)
    return flat[:: max(1, len(flat) // _SAMPLED)][:_SAMPLED]


def _sum_of_rows(tensor: Tensor) -> Tensor:
    """One number, int64, of all bits: rows' sums, each taken another odd number of times."""
    bits = _bits(tensor.contiguous())
    rows = bits.view(1, -1) if bits.dim() < 2 else bits.flatten(0, -2)
    if rows.shape[1] * rows.element_size() % 8 == 0:  # in whole words, as fast as memory is read
        rows = rows.view(torch.int64)
    sums = rows.sum(1, dtype=torch.int64)
    return (sums * (2 * torch.arange(len(sums), device=sums.device) + 1)).sum()
