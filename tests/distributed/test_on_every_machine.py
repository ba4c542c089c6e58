"""What ranks need is looked at once on each machine, and all end with the sentence of one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from dsv3_plugin.distributed.on_every_machine import looked_at
from dsv3_plugin.distributed.rank_zero_first import rank_zero_first
from dsv3_plugin.errors import UserError
from tests.gloo_ranks import run_ranks

WHOLE, BROKEN = "one", "two"
"""Machines."""


def _look(rank: int) -> list[tuple[str, int]]:
    return [
        _ended(rank, "there", [WHOLE, WHOLE, BROKEN], lambda machine: None),
        _ended(rank, "broken", [WHOLE, BROKEN, BROKEN], _fails_on_two),
        _ended(rank, "alone", [BROKEN] * 3, _fails_on_two),
        _ended(rank, "both", [BROKEN, "three", "three"], _fails),
        _ended(rank, "not needed", [WHOLE, WHOLE, BROKEN], None),
    ]


def _ended(
    rank: int, what: str, machines: list[str], look: Callable[[str], None] | None
) -> tuple[str, int]:
    """The sentence that a rank ends with, and how often it has looked."""
    looks: list[str] = []

    def counted(machine: str) -> None:
        looks.append(machine)
        look(machine)

    here = None if look is None else partial(counted, machines[rank])
    refuse = looked_at(what, here, machines[rank])
    try:
        rank_zero_first(f"{what} in all", lambda: refuse() or "")
    except UserError as error:
        return str(error), len(looks)
    return "", len(looks)


def _fails_on_two(machine: str) -> None:
    if machine == BROKEN:
        _fails(machine)


def _fails(machine: str) -> None:
    raise UserError("there is no sandbox: install it.")


def test_all_ranks_end_with_the_sentence_of_the_machine(tmp_path: Path) -> None:
    there, broken, alone, both, not_needed = zip(
        *run_ranks(3, _look, scratch=tmp_path), strict=True
    )
    assert [sentence for sentence, _ in there] == [""] * 3
    assert {sentence for sentence, _ in broken} == {"on two: there is no sandbox: install it."}
    assert {sentence for sentence, _ in alone} == {"there is no sandbox: install it."}
    [sentence] = {sentence for sentence, _ in both}
    assert sentence in (
        "on two and 1 other machine: there is no sandbox: install it.",
        "on three and 1 other machine: there is no sandbox: install it.",
    )
    assert sum(looks for _, looks in there) == 2  # once on each machine
    assert sum(looks for _, looks in broken) == 2
    assert sum(looks for _, looks in alone) == 1
    assert {sentence for sentence, _ in not_needed} == {""}
