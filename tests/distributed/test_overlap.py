"""Two computations that overlap: order, results, errors, and upstream's exchange in a pair."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dsv3_plugin.distributed.overlap import Overlap, PerSide, wait
from tests.gloo_ranks import run_ranks


class _Done:
    """A collective that has ended."""

    def wait(self) -> None:
        pass


def _side(name: str, exchanges: int, log: list[str]):
    def body() -> str:
        for number in range(exchanges):
            log.append(f"{name}{number}")
            wait(_Done())
        return name

    return body


def test_the_two_advance_in_step_and_the_longer_goes_on_alone() -> None:
    log: list[str] = []
    results = Overlap().run_pair(_side("f", 2, log), _side("b", 4, log))
    assert results == ("f", "b")
    assert log == ["f0", "b0", "f1", "b1", "b2", "b3"]


def test_what_is_under_way_is_kept_for_each_side() -> None:
    dispatcher = PerSide(SimpleNamespace(tokens=None), copy.copy)

    def side(tokens: str):
        def body() -> str:
            dispatcher.here.tokens = tokens
            wait(_Done())
            return dispatcher.here.tokens

        return body

    assert Overlap().run_pair(side("forward's"), side("backward's")) == ("forward's", "backward's")
    assert dispatcher.here.tokens == "forward's"  # outside a pair there is one


def test_the_backward_of_each_pair_begins_with_a_duplicate_of_its_own() -> None:
    dispatcher = PerSide(SimpleNamespace(tokens="none"), copy.copy)
    overlap = Overlap()

    def backward() -> str:
        before = dispatcher.here.tokens
        dispatcher.here.tokens = "left behind"
        return before

    for _ in range(2):
        assert overlap.run_pair(lambda: None, backward) == (None, "none")
    assert dispatcher.here.tokens == "none"


def test_a_pair_inside_a_pair_is_refused_and_both_sides_end() -> None:
    log: list[str] = []

    def nested() -> None:
        Overlap().run_pair(_side("f", 1, log), _side("b", 1, log))

    with pytest.raises(RuntimeError, match="runs a pair already"):
        Overlap().run_pair(nested, _side("x", 2, log))
    assert log == ["x0", "x1"]


def test_outside_a_pair_waiting_is_waiting() -> None:
    wait(_Done())


def _run_a_pair_that_finds_nothing_left(overlap: Overlap) -> None:
    log: list[str] = []
    wait(_Done())  # outside a pair again: nobody is waited for
    assert overlap.run_pair(_side("f", 2, log), _side("b", 2, log)) == ("f", "b")
    assert log == ["f0", "b0", "f1", "b1"]


@pytest.mark.parametrize("failing", ["forward", "backward"])
def test_an_error_of_either_side_ends_both_and_reaches_the_caller(failing: str) -> None:
    log: list[str] = []

    def broken() -> None:
        wait(_Done())
        raise ValueError(failing)

    whole = _side("x", 3, log)
    pair = (broken, whole) if failing == "forward" else (whole, broken)
    overlap = Overlap()
    with pytest.raises(ValueError, match=failing):
        overlap.run_pair(*pair)
    assert log == ["x0", "x1", "x2"]
    _run_a_pair_that_finds_nothing_left(overlap)
    _run_a_pair_that_finds_nothing_left(Overlap())


def test_both_sides_compute_under_the_callers_settings() -> None:
    def settings() -> tuple[bool, bool, torch.dtype, int]:
        return (
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.get_num_threads(),
        )

    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        inside = settings()
        assert Overlap().run_pair(settings, settings) == (inside, inside)
    torch.set_num_threads(threads)
    assert inside == (False, True, torch.float16, threads + 1)
    assert Overlap().run_pair(settings, settings) == (settings(), settings())


def _exchange_in_a_pair(rank: int) -> bool:
    from megatron.core.tensor_parallel import mappings

    from dsv3_plugin.dispatch.alltoall import AllToAll

    world = torch.distributed.group.WORLD
    send = [[1, 2], [3, 4]][rank]
    receive = [[1, 3], [2, 4]][rank]
    draw = torch.Generator().manual_seed(rank)
    rows = [torch.randn(sum(send), 5, generator=draw, requires_grad=True) for _ in range(2)]
    weight = torch.randn(sum(receive), 5, generator=draw)

    def exchange(function: type, index: int):
        def body() -> torch.Tensor:
            received = function.apply(world, rows[index], receive, send)
            (received * weight).sum().backward()
            return received

        return body

    expected = [exchange(mappings._AllToAll, index)() for index in range(2)]
    gradients = [row.grad.clone() for row in rows]
    for row in rows:
        row.grad = None
    got = Overlap().run_pair(exchange(AllToAll, 0), exchange(AllToAll, 1))
    return all(
        torch.equal(a, b)
        for a, b in zip([*expected, *gradients], [*got, *(row.grad for row in rows)], strict=True)
    )


def test_exchanges_in_a_pair_equal_upstreams(tmp_path: Path) -> None:
    assert run_ranks(2, _exchange_in_a_pair, scratch=tmp_path) == [True, True]
