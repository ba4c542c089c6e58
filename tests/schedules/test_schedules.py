"""Published schedules against those who published them: torch, Megatron-Core and DeepSeek."""

from types import SimpleNamespace

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.schedules.actions import BACKWARD, FORWARD, Compute, Overlap, Schedule, csv_text
from dsv3_plugin.schedules.costs import Costs, even_stages
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from dsv3_plugin.schedules.interleaved import interleaved
from dsv3_plugin.schedules.one_f_one_b import one_f_one_b
from dsv3_plugin.schedules.one_f_one_b_v import one_f_one_b_v
from dsv3_plugin.schedules.registry import SCHEDULES
from dsv3_plugin.schedules.simulate import simulate
from dsv3_plugin.schedules.validate import validate
from dsv3_plugin.schedules.zb1p import zb1p
from dsv3_plugin.schedules.zbv import zbv
from tests.schedules import torch_schedules


def cells(schedule: Schedule) -> list[list[str]]:
    return [["" if a is None else str(a) for a in row] for row in schedule.rows]


def without_idle(rows: list[list[str]]) -> list[list[str]]:
    return [[cell for cell in row if cell] for row in rows]


RANKS = range(1, 9)


@pytest.mark.parametrize("pp", RANKS)
def test_dualpipe_v_is_torchs(pp):
    for micro_batches in range(2 * pp, 4 * pp + 4):  # odd ones too
        theirs = torch_schedules.build("ScheduleDualPipeV", pp, 2, micro_batches)
        assert cells(dualpipe_v(pp, micro_batches)) == torch_schedules.as_text(
            theirs.pipeline_order
        )


@pytest.mark.parametrize("pp", RANKS)
def test_zbv_is_torchs_idle_cells_included(pp):
    for micro_batches in range(1, 3 * pp + 3):
        theirs = torch_schedules.build("ScheduleZBVZeroBubble", pp, 2, micro_batches)
        assert cells(zbv(pp, micro_batches)) == torch_schedules.as_text(theirs.pipeline_order)


@pytest.mark.parametrize("pp", [2, 4, 8])
def test_1f1b_in_a_v_holds_what_1f1b_holds_and_idles_less(pp):
    for micro_batches in (pp, 2 * pp, 3 * pp + 1):
        in_a_v, plain = (
            simulate(schedule, even_stages(schedule, Costs()))
            for schedule in (one_f_one_b_v(pp, micro_batches), one_f_one_b(pp, micro_batches))
        )
        assert max(in_a_v.peak_activations) <= max(plain.peak_activations)
        assert in_a_v.makespan <= plain.makespan
        assert {part.kind for _, _, part in in_a_v.schedule.parts()} == {"F", "B"}


@pytest.mark.parametrize("pp", [2, 3, 4, 8])
def test_zb1p_is_torchs(pp):
    for micro_batches in range(pp, 3 * pp + 1, pp):
        theirs = torch_schedules.build("ScheduleInterleavedZeroBubble", pp, 1, micro_batches)
        assert without_idle(cells(zb1p(pp, micro_batches))) == without_idle(
            torch_schedules.as_text(theirs.pipeline_order)
        )


@pytest.mark.parametrize("pp", [2, 4, 8])
@pytest.mark.parametrize("vp", [2, 3])
def test_interleaved_is_torchs_where_groups_are_as_large(pp, vp):
    for micro_batches in (pp, 2 * pp, 3 * pp):
        theirs = torch_schedules.build("ScheduleInterleaved1F1B", pp, vp, micro_batches)
        assert without_idle(cells(interleaved(pp, micro_batches, vp))) == without_idle(
            torch_schedules.as_text(theirs.pipeline_order)
        )


@pytest.mark.parametrize("name", ["dualpipe_v", "zbv"])
def test_torch_loads_our_file(name, tmp_path):
    ours = SCHEDULES[name].schedule(4, 11)
    path = tmp_path / "schedule.csv"
    path.write_text(csv_text(ours.rows))
    torch_name = {"dualpipe_v": "ScheduleDualPipeV", "zbv": "ScheduleZBVZeroBubble"}[name]
    theirs = torch_schedules.build(torch_name, 4, 2, 11)
    expected = torch_schedules.as_text(theirs.pipeline_order)
    loaded = torch_schedules.build(torch_name, 4, 2, 8)  # another size, overwritten by the file
    loaded._n_microbatches = 11
    loaded._load_csv(str(path))
    assert without_idle(torch_schedules.as_text(loaded.pipeline_order)) == without_idle(expected)
    assert loaded.stage_index_to_group_rank == ours.stage_ranks


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("pp", "micro_batches", "vp"), [(2, 5, 2), (4, 8, 3), (4, 10, 2), (8, 20, 4)]
)
def test_interleaved_is_megatrons(pp, micro_batches, vp, overlap):
    from megatron.core.pipeline_parallel.schedules import (
        get_pp_rank_microbatches,
        get_schedule_table,
    )

    from dsv3_plugin.schedules.interleaved import group_size

    size = group_size(pp, micro_batches)
    table = get_schedule_table(micro_batches, vp, size)
    schedule = interleaved(pp, micro_batches, vp, overlap)
    for rank in range(pp):
        communicator = SimpleNamespace(
            pp_group=SimpleNamespace(size=lambda: pp, rank=lambda rank=rank: rank),
            virtual_pipeline_model_parallel_size=vp,
        )
        total, _, warmup, _ = get_pp_rank_microbatches(
            micro_batches,
            vp,
            size,
            overlap_moe_expert_parallel_comm=overlap,
            p2p_communicator=communicator,
        )
        forwards = [Compute(chunk * pp + rank, FORWARD, m) for m, chunk in table]
        backwards = [Compute((vp - 1 - chunk) * pp + rank, BACKWARD, m) for m, chunk in table]
        expected = list(forwards[:warmup])
        for k in range(total - warmup):
            pair = (forwards[warmup + k], backwards[k])
            expected += [Overlap(*pair)] if overlap else pair
        expected += backwards[total - warmup :]
        assert list(schedule.rows[rank]) == expected


def test_dualpipe_has_the_order_of_the_published_figure():
    """8 ranks, 20 micro-batches: the first and the middle rank of the upper half.

    The figure leaves out the numbers of the reverse direction; they are 10..19 here.
    """
    rows = [" ".join(row) for row in cells(dualpipe(8, 20))]
    assert rows[0] == (
        "0F0 0F1 0F2 0F3 0F4 0F5 0F6 15F10 15I10 15W10 15F11 15I11 15W11 15F12 15I12 15W12 "
        "15F13 (0F7;15B13)OVERLAP_F_B (15F14;0B0)OVERLAP_F_B (0F8;15B14)OVERLAP_F_B "
        "(15F15;0B1)OVERLAP_F_B (0F9;15B15)OVERLAP_F_B (15F16;0B2)OVERLAP_F_B 15B16 "
        "(15F17;0B3)OVERLAP_F_B 15B17 (15F18;0B4)OVERLAP_F_B 15B18 (15F19;0B5)OVERLAP_F_B "
        "15B19 0I6 0W6 0I7 0W7 0I8 0W8 0I9 0W9"
    )
    assert rows[3] == (
        "3F0 12F10 3F1 12F11 3F2 12F12 3F3 12F13 3F4 12B10 (12F14;3B0)OVERLAP_F_B "
        "(3F5;12B11)OVERLAP_F_B (12F15;3B1)OVERLAP_F_B (3F6;12B12)OVERLAP_F_B "
        "(12F16;3B2)OVERLAP_F_B (3F7;12B13)OVERLAP_F_B (12F17;3B3)OVERLAP_F_B "
        "(3F8;12B14)OVERLAP_F_B (12F18;3B4)OVERLAP_F_B (3F9;12B15)OVERLAP_F_B "
        "(12F19;3B5)OVERLAP_F_B 12B16 3B6 12B17 3B7 12I18 3I8 12I19 3I9 12W18 3W8 12W19 3W9"
    )


@pytest.mark.parametrize(("pp", "micro_batches"), [(2, 4), (4, 12), (8, 20), (8, 36)])
def test_dualpipe_is_two_mirrored_dualpipe_v(pp, micro_batches):
    """Rank r < P/2 runs what rank r of a V over P/2 ranks does, and rank P-1-r its mirror image."""
    both = dualpipe(pp, micro_batches)
    half = dualpipe_v(pp // 2, micro_batches // 2)

    def renamed(action, near, far, rank, half_micro_batches):
        parts = []
        for stage, kind, m in action.parts:
            is_near = stage == rank
            target = near if is_near else far
            shift = half_micro_batches if target >= pp else 0
            parts.append(Compute(target, kind, m + shift))
        return parts[0] if len(parts) == 1 else Overlap(*parts)

    for rank in range(pp // 2):
        for holder, near, far in (
            (rank, rank, 2 * pp - 1 - rank),
            (pp - 1 - rank, pp + rank, pp - 1 - rank),
        ):
            expected = [
                renamed(action, near, far, rank, micro_batches // 2) for action in half.rows[rank]
            ]
            assert list(both.rows[holder]) == expected


def test_streams_of_dualpipe():
    schedule = dualpipe(4, 8)
    assert schedule.streams == (range(4), range(4, 8))
    assert schedule.num_micro_batches == 8
    assert schedule.stage_ranks == {0: 0, 1: 1, 2: 2, 3: 3, 4: 3, 5: 2, 6: 1, 7: 0}


@pytest.mark.parametrize("pp", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5, 8, 12, 13])
def test_every_published_schedule_is_valid(pp, micro_batches):
    made = 0
    for kind in SCHEDULES.values():
        for vp in (2, 3) if kind.stages_per_rank is None else (None,):
            for schedule in kind.forms(pp, micro_batches, vp):
                validate(schedule)
                assert schedule.pp == pp
                assert schedule.num_micro_batches == micro_batches
                made += 1
    assert made >= 3  # 1F1B, ZB1P and ZB-V need nothing


@pytest.mark.parametrize(
    ("maker", "pp", "micro_batches", "words"),
    [
        (dualpipe, 7, 20, "even number of ranks"),
        (dualpipe, 8, 21, "even number of micro-batches"),
        (dualpipe, 8, 14, "at least 2 x P = 16"),
        (dualpipe_v, 8, 15, "at least 2 x P = 16"),
        (interleaved, 8, 7, "at least as many micro-batches as ranks"),
        (one_f_one_b, 8, 0, "at least one micro-batch"),
        (zbv, 8, 0, "at least one micro-batch"),
        (one_f_one_b_v, 8, 0, "1f1b_v needs at least one micro-batch"),
        (zb1p, 8, 0, "at least one micro-batch"),
    ],
)
def test_a_schedule_says_what_it_needs(maker, pp, micro_batches, words):
    with pytest.raises(UserError, match=words):
        maker(pp, micro_batches)
