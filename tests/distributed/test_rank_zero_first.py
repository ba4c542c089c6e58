"""Work that one rank does for all of them: its result, its error, and rank 0 gone quiet."""

import datetime
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from torch.distributed import distributed_c10d

from dsv3_plugin.distributed import rank_zero_first as module
from dsv3_plugin.distributed.failures import LostRank
from dsv3_plugin.distributed.rank_zero_first import rank_zero_first
from dsv3_plugin.errors import Passing, SaidElsewhere, UserError
from tests.gloo_ranks import run_ranks


def _ask(rank: int) -> tuple[list[str], list[str], str]:
    done: list[str] = []

    def work(text: str) -> str:
        time.sleep(0.2)  # the others are there first
        done.append(text)
        if text == "wrong":
            raise UserError("the corpus is empty.\nadd a file")
        return text

    results = [rank_zero_first("work", lambda t=text: work(t)) for text in ("one\ntwo", "", "ß")]
    with pytest.raises(UserError) as caught:
        rank_zero_first("work", lambda: work("wrong"))
    results.append(rank_zero_first("work", lambda: work("after it")))
    return results, done, str(caught.value)


def test_rank_0_works_and_all_have_the_result_or_the_sentence(tmp_path: Path) -> None:
    answers = run_ranks(3, _ask, scratch=tmp_path)
    assert [results for results, *_ in answers] == 3 * [["one\ntwo", "", "ß", "after it"]]
    assert [done for _, done, _ in answers] == [
        ["one\ntwo", "", "ß", "wrong", "after it"],
        [],
        [],
    ]
    # A sentence is one line, whatever is in it.
    assert {sentence for *_, sentence in answers} == {r"the corpus is empty.\nadd a file"}


def _taken(rank: int) -> tuple[str, bool, bool]:
    module._HEARD = datetime.timedelta(seconds=300)  # on a machine with much to do

    def work() -> str:
        raise Passing("the folder is in use")

    if rank == 1:
        time.sleep(0.3)  # rank 0, with the store that it may hold, is still there afterwards
    with pytest.raises(Passing) as caught:
        rank_zero_first("lock", work)
    heard = distributed_c10d._get_default_store().check(["dsv3_plugin/lock/1/heard by 1"])
    return str(caught.value), heard, isinstance(caught.value, SaidElsewhere)


def test_all_have_the_sentence_before_rank_0_is_gone_and_know_that_it_passes(tmp_path: Path):
    assert run_ranks(2, _taken, scratch=tmp_path) == [
        ("the folder is in use", True, False),
        ("the folder is in use", True, True),
    ]


def test_rank_0_that_is_gone_without_a_word_is_named(monkeypatch):
    def wait(*_: object) -> None:
        raise dist.DistNetworkError("failed to recv, got 0 bytes")

    store = SimpleNamespace(add=lambda *_: 1, wait=wait)
    monkeypatch.setattr(distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    with pytest.raises(LostRank, match="rank 1 lost rank 0 during lock: it died; see the end of"):
        rank_zero_first("lock", str)


def _wait(rank: int) -> str:
    if rank == 0:
        return "never asked"
    with pytest.raises(TimeoutError) as caught:
        rank_zero_first("work", str, datetime.timedelta(seconds=0.2))
    return str(caught.value)


def test_a_wait_with_a_limit_ends(tmp_path: Path) -> None:
    assert run_ranks(2, _wait, scratch=tmp_path)[1] == "no answer from rank 0 to work"
