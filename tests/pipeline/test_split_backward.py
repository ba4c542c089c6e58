"""A backward in two halves on Transformer Engine's interface, with a stand-in that obeys it.

TE computes nothing without a GPU. What is asked of it is little: with `delay_wgrad_compute` a
module puts the weight gradient of every backward into its queue, `backward_dw()` computes the
oldest into `.grad`, over what is there, and then calls the hooks it was given.
"""

import queue
from collections.abc import Callable
from typing import Any

import torch

from dsv3_plugin.pipeline.split_backward import SplitBackward


class _Store:
    """As transformer_engine.pytorch.module._common.WeightGradStore."""

    def __init__(self, delayed: bool) -> None:
        self._delayed = delayed
        self.context: queue.Queue[Any] = queue.Queue()

    def put(self, tensor_list: list[Any], func: Any) -> None:
        self.context.put([tensor_list, func])

    def delay_wgrad_compute(self) -> bool:
        return self._delayed


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, store: _Store) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.store = store
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if ctx.store.delay_wgrad_compute():
            ctx.store.put([x, gradient], None)
            return gradient @ weight, None, None
        return gradient @ weight, gradient.t() @ x, None


class _Linear(torch.nn.Module):
    def __init__(self, delayed: bool = True) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(4, 4, generator=draw, dtype=torch.float64))
        self.wgrad_store = _Store(delayed)
        self.hooks: list[Callable[[], None]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Product.apply(x, self.weight, self.wgrad_store)

    def backward_dw(self) -> None:
        if not self.wgrad_store.delay_wgrad_compute():
            return
        if self.wgrad_store.context.empty():
            raise RuntimeError("Pop empty queue.")
        (x, gradient), _ = self.wgrad_store.context.get()
        self.weight.grad = gradient.t() @ x
        for hook in self.hooks:
            hook()


class _Chunk(torch.nn.Module):
    """Two linears in a row, one that does not take part, and DDP's hooks on them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = _Linear(), _Linear(), _Linear()
        self.plain = _Linear(delayed=False)
        self.arrived: list[str] = []
        for name in ("first", "second"):
            linear = getattr(self, name)
            linear.weight.main_grad = torch.zeros_like(linear.weight)
            linear.hooks.append(lambda name=name, linear=linear: self._take(name, linear))

    def _take(self, name: str, linear: _Linear) -> None:
        self.arrived.append(name)
        linear.weight.main_grad += linear.weight.grad
        linear.weight.grad = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain(self.second(self.first(x)))


def _batch(number: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(number)
    return torch.randn(3, 4, generator=draw, dtype=torch.float64, requires_grad=True)


def _expected(batches: int) -> list[torch.Tensor]:
    first, second, plain = (_Linear(delayed=False) for _ in range(3))
    for number in range(batches):
        plain(second(first(_batch(number)))).square().sum().backward()
    return [first.weight.grad, second.weight.grad]


def test_weight_gradients_are_paid_when_asked_for_and_hooks_run_then() -> None:
    chunk = _Chunk()
    split = SplitBackward(chunk)
    inputs = [_batch(number) for number in range(3)]

    def backward(number: int, owed: bool) -> None:
        with split.keeping_weights_owed(owed):
            chunk(inputs[number]).square().sum().backward()

    backward(0, owed=True)
    backward(1, owed=True)
    assert all(x.grad is not None for x in inputs[:2])
    assert chunk.arrived == []
    split.weights()
    assert sorted(chunk.arrived) == ["first", "second"]
    backward(2, owed=False)  # whole: pays as much as it owes, of the oldest
    split.weights()
    assert len(chunk.arrived) == 6
    assert chunk.first.wgrad_store.context.empty()
    for linear, expected in zip((chunk.first, chunk.second), _expected(3), strict=True):
        torch.testing.assert_close(linear.weight.main_grad, expected)


def test_nothing_owed_is_nothing_done() -> None:
    chunk = _Chunk()
    SplitBackward(chunk).weights()
    assert chunk.arrived == []


class _Quantised:
    """As TE's quantised tensors: along rows and along columns, each may go."""

    def __init__(self) -> None:
        self.orders = {"rows", "columns"}

    def update_usage(self, rowwise_usage: bool, columnwise_usage: bool) -> None:
        wanted = {"rows": rowwise_usage, "columns": columnwise_usage}
        self.orders = {order for order in self.orders if wanted[order]}


def test_what_is_owed_is_kept_along_columns_alone() -> None:
    """The products for the weights read nothing else; experts come as lists."""
    chunk = _Chunk()
    for _ in range(2):  # a chunk may be looked at again
        SplitBackward(chunk)
    store = chunk.first.wgrad_store
    one, expert, plain = _Quantised(), _Quantised(), torch.ones(1)
    store.put([[expert, plain], one, ["buffers"]], "product")
    assert one.orders == expert.orders == {"columns"}
    assert store.context.get() == [[[expert, plain], one, ["buffers"]], "product"]
