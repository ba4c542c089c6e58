"""The race checker: it sees what nothing orders, and nothing where something does."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsv3_plugin.rehearsal.gpu import Gpu
from dsv3_plugin.rehearsal.shim.build import built_shim
from dsv3_plugin.upstream import cpu_host
from tests.streams import Device
from tests.watched import watching
from tests.where_nodes_run import where_nodes_run

cpu_host.enable()


def races(compute: Callable[[], None]) -> set[str]:
    """The rules that a computation breaks."""
    device = Device(lambda *_: torch.empty(1))
    with watching(device):
        compute()
    return {race.rule for race in device.races}


def writes_and_reads(order: Callable[[torch.cuda.Stream, torch.cuda.Event], None]) -> None:
    side, event = torch.cuda.Stream(), torch.cuda.Event()
    numbers = torch.ones(4)
    event.record()
    order(side, event)
    with torch.cuda.stream(side):
        numbers * 2


def test_reading_waits_for_the_write():
    assert races(lambda: writes_and_reads(lambda side, event: None)) == {"access"}
    assert not races(lambda: writes_and_reads(lambda side, event: event.wait(side)))
    assert not races(lambda: writes_and_reads(lambda side, event: event.synchronize()))
    assert not races(
        lambda: writes_and_reads(lambda side, event: side.wait_stream(torch.cuda.current_stream()))
    )


def test_an_event_covers_what_came_before_it_alone():
    def compute() -> None:
        side, event = torch.cuda.Stream(), torch.cuda.Event()
        numbers = torch.ones(4)
        event.record()
        numbers.add_(1)
        event.wait(side)
        with torch.cuda.stream(side):
            numbers * 2

    assert races(compute) == {"access"}


def test_parts_of_one_block_are_apart():
    def compute(parts: tuple[slice, slice]) -> None:
        side = torch.cuda.Stream()
        numbers = torch.ones(8)
        side.wait_stream(torch.cuda.current_stream())
        numbers[parts[0]].add_(1)
        with torch.cuda.stream(side):
            numbers[parts[1]].add_(1)

    assert not races(lambda: compute((slice(4), slice(4, 8))))
    assert races(lambda: compute((slice(5), slice(4, 8)))) == {"access"}


def freed_while_read(keep: Callable[[torch.Tensor, torch.cuda.Stream], None]) -> None:
    side = torch.cuda.Stream()
    numbers = torch.ones(4)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        numbers * 2
    keep(numbers, side)
    del numbers
    torch.ones(4)


def test_memory_goes_to_the_next_tensor_of_its_stream():
    assert races(lambda: freed_while_read(lambda numbers, side: None)) == {"freed"}
    assert not races(lambda: freed_while_read(torch.Tensor.record_stream))
    assert not races(
        lambda: freed_while_read(
            lambda numbers, side: torch.cuda.current_stream().wait_stream(side)
        )
    )


def test_the_host_waits_for_a_copy():
    def compute(wait: bool) -> None:
        numbers = torch.ones(4)
        copied = numbers.to("cpu", non_blocking=True)
        event = torch.cuda.current_stream().record_event()
        if wait:
            event.synchronize()
        assert (copied + 1).tolist() == [2, 2, 2, 2]

    assert races(lambda: compute(False)) == {"host"}
    assert not races(lambda: compute(True))
    assert not races(lambda: torch.ones(4).tolist())  # the host waits for the stream


def test_products_share_a_workspace():
    def compute(ordered: bool) -> None:
        side = torch.cuda.Stream()
        left, right = torch.ones(2, 2), torch.ones(2, 2)
        side.wait_stream(torch.cuda.current_stream())
        left @ left
        if ordered:
            side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            right @ right

    workspace = torch.empty(1)
    for ordered, rules in ((False, {"workspace"}), (True, set())):
        device = Device(lambda *_: workspace)
        with watching(device):
            compute(ordered)
        assert {race.rule for race in device.races} == rules


def test_a_backward_runs_where_its_forward_ran():
    def compute(read: bool) -> None:
        side, ran = torch.cuda.Stream(), []
        weight = torch.nn.Parameter(torch.ones(4))
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss = (weight * 2).sum()
        loss.grad_fn.next_functions[0][0].register_hook(
            lambda *_: ran.append(torch.cuda.current_stream())
        )
        if read:
            loss + 1
        loss.backward()
        assert ran == [side]
        weight.grad + 1  # autograd has ordered it after the other stream

    assert not races(lambda: compute(False))
    assert races(lambda: compute(True)) == {"access"}


@pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is here"
)
def test_nodes_run_where_torchs_engine_runs_them():
    with watching(Device(lambda *_: torch.empty(1))):
        ours = where_nodes_run()
    gpu = Gpu("NVIDIA H800", (9, 0), 85_000_000_000, 132, per_node=8)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("where_nodes_run.py"))],
        env=os.environ | built_shim().environment(gpu),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [tuple(seen) for seen in json.loads(done.stdout)] == ours
    assert ("backward", "forward's") in ours
    assert ("AccumulateGrad", "main") in ours
