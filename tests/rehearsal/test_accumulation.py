"""Gradients that nothing gives, and those that lose what they were given: by what is written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsv3_plugin.upstream import cpu_host

cpu_host.enable()

from dsv3_plugin.rehearsal import accumulation  # noqa: E402
from dsv3_plugin.rehearsal.accumulation import Accumulation  # noqa: E402
from dsv3_plugin.rehearsal.gradients import Gradient, range_of  # noqa: E402
from dsv3_plugin.rehearsal.te.kernels import Kernel  # noqa: E402

BUFFER = torch.zeros(12)
FIRST, SECOND = BUFFER[:4].view(2, 2), BUFFER[4:].view(4, 2)
A, B = torch.ones(4, 3), torch.ones(3, 2)


class Told(TorchDispatchMode):
    """Tells of every operation."""

    def __init__(self, watcher: Accumulation) -> None:
        super().__init__()
        self.watcher = watcher

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **kwargs or {})
        self.watcher.issued(function, args, kwargs or {}, result)
        return result


def add(gradient: torch.Tensor) -> None:
    gradient.add_(torch.ones_like(gradient))


def accumulate(gradient: torch.Tensor) -> None:
    rows = gradient.shape[0]
    torch.addmm(gradient, A[:rows], B, out=gradient)


def write(gradient: torch.Tensor) -> None:
    torch.mm(A[: gradient.shape[0]], B, out=gradient)


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Accumulation:
    gradients = [
        Gradient("second", range_of(SECOND), expert=True, width=4),
        Gradient("first", range_of(FIRST), expert=False, width=2),
    ]
    monkeypatch.setattr(accumulation, "gradients_of", lambda chunks: iter(gradients))
    watcher = Accumulation()
    watcher.watch([], experts=True)
    return watcher


@pytest.mark.parametrize(
    ("steps", "overwritten"),
    [
        ((add, add), []),
        ((accumulate, accumulate), []),
        ((write, add, accumulate), []),  # a first micro-batch may write
        ((write, write), ["first"]),
        ((add, write), ["first"]),
        ((add, torch.zero_, write), []),
        ((add, lambda gradient: BUFFER.zero_(), write), []),
        ((add, lambda gradient: BUFFER.mul_(torch.tensor(0.5)), add), []),
        ((add, lambda gradient: gradient.copy_(torch.ones(2, 2)), add), []),
    ],
)  # fmt: skip
def test_what_a_micro_batch_gave_is_kept(
    watcher: Accumulation, steps: tuple[Callable[[torch.Tensor], Any], ...], overwritten: list[str]
) -> None:
    with Told(watcher):
        for step in steps:
            step(FIRST)
    assert list(watcher.overwritten) == overwritten
    assert watcher.missing() == ["second"]


def test_scaling_and_summing_give_nothing(watcher: Accumulation) -> None:
    with Told(watcher):
        BUFFER.zero_()
        BUFFER.mul_(torch.tensor(0.5))
        SECOND.copy_(torch.ones(4, 2))
    assert watcher.missing() == ["first", "second"]


def test_kernels_of_transformer_engine_add_to_what_they_read(watcher: Accumulation) -> None:
    for reads in ((A,), (A, FIRST)):
        watcher.launched(Kernel("gemm", reads, (FIRST,)))
    watcher.launched(Kernel("zero", (), (SECOND,)))
    assert watcher.missing() == ["second"]
    assert not watcher.overwritten
    watcher.launched(Kernel("gemm", (A,), (FIRST,)))
    assert list(watcher.overwritten) == ["first"]


def test_experts_without_tokens_are_left_out(watcher: Accumulation) -> None:
    watcher.watch([], experts=False)
    assert watcher.missing() == ["first"]


def test_gradients_in_fewer_bits_are_told(watcher: Accumulation) -> None:
    assert watcher.rounded == ("first",)
