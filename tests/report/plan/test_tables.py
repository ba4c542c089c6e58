"""A plan on a terminal: what it says, and that no number is folded or lost."""

import io
import re
from dataclasses import replace
from typing import get_args

import pytest

from dsv3_plugin.planner.plan import MemoryPart, Moment, Plan, TimePart
from dsv3_plugin.report.plan.tables import plan_tables
from dsv3_plugin.report.plan.words import MEMORY, MOMENT, TIME, roles, stages_text
from dsv3_plugin.terminal.console import Console
from tests.plans import GB, cluster, phase, plan


def shown(made: Plan, balanced: Plan | None = None, width: int = 80, **options: bool) -> str:
    screen = io.StringIO()
    Console(screen, width=width).print(plan_tables(made, balanced, **options))
    return screen.getvalue()


def row(text: str, beginning: str) -> list[str]:
    """The words of the line that begins so, after its beginning."""
    (line,) = (line for line in text.splitlines() if line.startswith(beginning))
    return line.removeprefix(beginning).split()


@pytest.mark.parametrize(
    ("names", "kind"), [(MEMORY, MemoryPart), (MOMENT, Moment), (TIME, TimePart)]
)
def test_every_part_has_a_name_for_people(names, kind):
    assert tuple(names) == get_args(kind)
    assert len({*names.values()}) == len(names)


def test_phases_have_their_numbers_and_the_run_its_sums():
    text = shown(plan())
    assert "on 2,048 of the 2,048 GPUs of made-up (Made-Up 80), $2.00 an hour each" in text
    assert row(text, "batch 3,072 to 15,360 ")[:4] == ["15,360", "469B", "20.00", "1,536"]
    assert row(text, "batch 15,360 ") == [
        "15,360", "12.58T", "20.00", "1,536", "38.9%", "46d07h", "2.276M", "$4.551M",
    ]  # fmt: skip
    assert row(text, "zbv") == row(text, "dualpipe_v") == []  # each below its phase
    assert row(text, "whole run ")[:1] == ["13.05T"]
    assert row(text, "whole run ")[-3:] == ["47d10h", "2.332M", "$4.665M"]


def test_what_all_phases_have_in_common_is_said_once():
    one = shown(plan(phase()))
    assert one.count("dualpipe_v") == 1
    assert "sequence" not in one
    assert "whole run" not in one
    long = shown(plan(phase(), phase("128K", seq_length=131072, batch=480)))
    assert row(long, "128K  ")[:2] == ["131.1K", "480"]


def test_memory_is_shown_of_the_fullest_rank_against_the_card():
    text = shown(plan())
    assert "memory of pipeline rank 1, batch 3,072 to 15,360, in forward and backward" in text
    assert row(text, "activations") == ["50.0"]
    assert row(text, "headroom") == ["8.0"]
    busier = plan(phase(activations=47 * GB), imbalance=1.2)
    beside = shown(busier, plan(phase()))
    assert row(beside, "activations") == ["50.0", "57.0"]
    assert row(beside, "headroom") == ["8.0", "1.0"]
    assert "at 1.2 × mean" in beside


def test_telling_ranks_stand_for_all():
    text = shown(plan())
    assert row(text, "1 2 dense + 6 MoE, 7 MoE") == ["13.00", "0.963", "72.0", "8.0", "fullest"]
    assert row(text, "3 10 MoE, 7 MoE")[-2:] == ["slowest,", "last"]
    assert "2 10 MoE, 7 MoE" not in text
    assert row(shown(plan(), every_rank=True), "2 10 MoE, 7 MoE") == [
        "14.00", "1.037", "62.0", "18.0",
    ]  # fmt: skip


def test_ranks_are_named_once_for_all_that_they_are():
    assert roles(phase()) == {0: "first", 1: "fullest", 3: "slowest, last"}


def test_stages_of_one_kind_are_counted():
    first = phase().ranks[0]
    assert stages_text(first) == "embedding + 1 dense, 11 MoE + 1 MTP + head"


def test_time_of_a_step_has_parts_with_shares():
    text = shown(plan())
    assert "a step of batch 15,360 on its slowest rank, 3" in text
    assert row(text, "matrix products") == ["10.00", "50.0%"]
    assert row(text, "a step  ") == ["20.00", "100.0%"]
    assert "quantising" not in text  # nothing is quantised


def test_checkpoints_and_the_limit_are_sentences():
    text = shown(plan())
    assert "checkpoints of 9.6 TB, written 210 times: 2.0 PB if all are kept" in text
    assert "memory is the tightest limit: 72.0 of 80.0 GB" in text
    assert "no checkpoint is written" in shown(plan(phase(checkpoints_written=0)))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_it_fits_and_no_number_is_folded(width):
    named = phase("a phase with a name that is longer than anybody would want to see it in a table")
    text = shown(plan(named, phase("32K", seq_length=32768)), every_rank=True, width=width)
    assert max(map(len, text.splitlines())) <= width
    for number in ("2.276M", "$4.551M", "38.9%", "32.77K"):
        assert re.search(rf"(?<!\S){re.escape(number)}(?!\S)", text), number


def test_names_are_shown_and_not_obeyed():
    hostile = cluster(name="[red]x\x1b[2J", gpu="a\nb")
    text = shown(plan(cluster=hostile), width=100)
    assert "[red]x\\x1b[2J (a\\nb)" in text
    assert "\x1b" not in text


def test_small_runs_have_small_numbers():
    small = phase(
        "batch 16",
        step_seconds=0.0123,
        time_by_part={"gemm": 0.0100, "elementwise": 0.0023},
        tokens_per_second_per_gpu=12.34,
        seconds=3.0,
        gpu_hours=0.0016,
        cost=0.0,
    )
    text = shown(plan(small))
    assert row(text, "batch 16 ")[-6:] == [
        "0.01230", "12.3", "38.9%", "3s", "0.001600", "$0",
    ]  # fmt: skip
    assert row(text, "elementwise kernels") == ["0.00230", "18.7%"]


def test_small_memory_is_told_in_megabytes():
    rank = phase().ranks[0]
    small = replace(rank, memory_bytes={"weights": 12_345_678}, moments={"step": 12_345_678})
    text = shown(plan(phase(ranks=(small,))))
    assert row(text, "weights") == ["12.3"]
    assert row(text, "headroom") == ["79,987.7"]
    assert "MB  headroom" in text


def test_a_cluster_without_gpus_or_price_says_neither():
    text = shown(plan(cluster=cluster(host="cpu", price_per_gpu_hour=0.0)))
    assert "on 2,048 of the 2,048 devices of made-up (Made-Up 80)\n" in text
