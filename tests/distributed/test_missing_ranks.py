"""Who is missing, as the ranks that are left find out; the state of it belongs to the world."""

import os
import threading
from pathlib import Path

from dsv3_plugin.distributed import missing_ranks
from dsv3_plugin.distributed.missing_ranks import answer_searches, find_missing
from tests.gloo_ranks import run_ranks


def _answering() -> int:
    return sum(isinstance(thread, missing_ranks._Answering) for thread in threading.enumerate())


def _twice_and_in_another_world(rank: int) -> list[int]:
    import torch.distributed as dist

    counts = []
    for _ in range(2):
        answer_searches()
        counts.append(_answering())
    dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    answer_searches()
    counts.append(_answering())
    return counts


def test_a_process_answers_once_in_each_world(tmp_path: Path) -> None:
    assert run_ranks(2, _twice_and_in_another_world, scratch=tmp_path) == 2 * [[1, 1, 2]]


def _search(rank: int) -> list[int]:
    if rank == 2:
        os._exit(1)
    missing_ranks._LOOK_EVERY_S = 0.1
    answer_searches()
    return find_missing([0, 1, 2])


def test_the_dead_one_is_found_among_several(tmp_path: Path) -> None:
    assert run_ranks(3, _search, scratch=tmp_path, missing=(2,))[:2] == [[2], [2]]
