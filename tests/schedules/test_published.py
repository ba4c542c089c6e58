"""DualPipe and DualPipeV, every row, as they were published.

The files in `golden/` come from others (see the README there). Here each is made once more from its
source, so that neither the file nor our schedule can drift alone.
"""

from collections import Counter, deque
from pathlib import Path

from dsv3_plugin.schedules.actions import csv_text
from dsv3_plugin.schedules.dualpipe import dualpipe
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v
from tests.schedules import torch_schedules

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> list[list[str]]:
    return [line.split(",") for line in (GOLDEN / name).read_text().splitlines()]


def published_order(half_rank: int, half_ranks: int, micro_batches: int) -> list[str]:
    """DeepSeek's eight steps of one rank, in their words.

    0 is the direction that enters at the rank's own end, 1 the other; `Z` is a backward that leaves
    its weight gradient to a later `W` ("zero bubble"); `F0&B1` run together.

    half_rank: distance from that end. micro_batches: of one direction.
    """
    outside, inside = half_ranks - half_rank - 1, half_rank + 1
    main = ["F0&B1 F1&B0"] * (micro_batches - 2 * half_ranks + inside)
    if outside == 0:
        main[0] = "F0 B1 F1&B0"  # the middle ranks do not overlap their first two
    # Step 6 is nB1B0, of whose backwards the second half are "zero bubble".
    alternating = ["B1", "B0"] * inside
    drained = alternating[:inside] + [word.replace("B", "Z") for word in alternating[inside:]]
    steps = [
        ["F0"] * (2 * outside),
        ["F0 F1"] * inside,
        ["Z1 W F1"] * outside,
        main,
        ["B1 F1&B0"] * outside,
        drained,
        ["W Z0"] * outside,
        ["W"] * inside,
    ]
    return [word for step in steps for words in step for word in words.split()]


def numbered(words: list[str], stages: tuple[int, int], firsts: tuple[int, int]) -> list[str]:
    """The order with stages and micro-batches, each direction's counted from its first."""
    seen: Counter[str] = Counter()
    owed: deque[str] = deque()

    def one(word: str) -> str:
        if word == "W":
            return owed.popleft()
        kind, direction = word[0], int(word[1])
        count = "F" if kind == "F" else "B"
        number = firsts[direction] + seen[count + word[1]]
        seen[count + word[1]] += 1
        if kind == "Z":
            owed.append(f"{stages[direction]}W{number}")
        return f"{stages[direction]}{'I' if kind == 'Z' else kind}{number}"

    cells = []
    for word in words:
        parts = [one(part) for part in word.split("&")]
        cells.append(parts[0] if len(parts) == 1 else f"({';'.join(parts)})OVERLAP_F_B")
    return cells


def published_dualpipe(pp: int, micro_batches: int) -> list[list[str]]:
    half = micro_batches // 2
    rows = []
    for rank in range(pp):
        words = published_order(min(rank, pp - 1 - rank), pp // 2, half)
        down, up = (rank, 0), (2 * pp - 1 - rank, half)
        own, other = (down, up) if rank < pp // 2 else (up, down)
        rows.append(numbered(words, (own[0], other[0]), (own[1], other[1])))
    return rows


def test_dualpipe_8x20_is_the_published_one():
    rows = golden("dualpipe_8x20.csv")
    assert len(rows) == 8
    assert rows == published_dualpipe(8, 20)
    assert (GOLDEN / "dualpipe_8x20.csv").read_text() == csv_text(dualpipe(8, 20).rows)


def test_dualpipe_v_4x10_is_torchs():
    rows = golden("dualpipe_v_4x10.csv")
    assert len(rows) == 4
    theirs = torch_schedules.build("ScheduleDualPipeV", 4, 2, 10)
    assert rows == torch_schedules.as_text(theirs.pipeline_order)
    assert (GOLDEN / "dualpipe_v_4x10.csv").read_text() == csv_text(dualpipe_v(4, 10).rows)


def test_other_sizes_of_dualpipe_follow_the_eight_steps():
    for pp in (2, 4, 6, 8, 16):
        for micro_batches in range(2 * pp, 4 * pp + 1, 2):
            ours = [[str(cell) for cell in row] for row in dualpipe(pp, micro_batches).rows]
            assert ours == published_dualpipe(pp, micro_batches)
