"""Where a step's host waits for its device: a value, a copy, or a wait that is written out."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dsv3_plugin.rehearsal.known import KnownValues
from dsv3_plugin.rehearsal.observe import Observer, count_waits
from dsv3_plugin.upstream import cpu_host
from dsv3_plugin.upstream.replace import Replacer

cpu_host.enable()
DEVICE = "meta"
"""Stands for the rank's: whatever is not the host."""


def _waits(of: Callable[[torch.Tensor], object]) -> Counter[str]:
    observer, replacer = Observer(KnownValues(), []), Replacer()
    count_waits(observer, replacer)
    try:
        with FakeTensorMode(), observer:
            of(torch.empty(4, device=DEVICE))
    finally:
        replacer.restore()
    return observer.waits


@pytest.mark.parametrize(
    "waiting",
    [
        lambda tensor: tensor.sum().item(),
        lambda tensor: tensor.masked_select(tensor > 0),
        lambda tensor: tensor.cpu(),
        lambda tensor: tensor.to("cpu", torch.float64),
        lambda tensor: torch.empty(4).copy_(tensor),
        lambda tensor: torch.cuda.synchronize(),
        lambda tensor: torch.cuda.Stream().synchronize(),
        lambda tensor: torch.cuda.Event().synchronize(),
    ],
    ids=["item", "mask", "cpu", "to", "copy", "device", "stream", "event"],
)
def test_the_host_waits(waiting: Callable[[torch.Tensor], object]) -> None:
    assert _waits(waiting).total() == 1


def test_who_waited_is_told() -> None:
    assert _waits(lambda tensor: tensor.cpu()) == {f"{__name__}.<lambda>": 1}


@pytest.mark.parametrize(
    "going_on",
    [
        lambda tensor: tensor.to("cpu", non_blocking=True),
        lambda tensor: torch.empty(4).copy_(tensor, non_blocking=True),
        lambda tensor: tensor.copy_(torch.empty(4)),
        lambda tensor: tensor.to(torch.float64),
        lambda tensor: torch.empty(4).cpu().sum().item(),
        lambda tensor: torch.cuda.current_stream().wait_event(torch.cuda.Event()),
    ],
    ids=["to", "copy", "from the host", "on the device", "on the host", "a stream waits"],
)
def test_the_host_goes_on(going_on: Callable[[torch.Tensor], object]) -> None:
    assert _waits(going_on) == {}
