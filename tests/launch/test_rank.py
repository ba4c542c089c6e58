"""How a rank ends is told to the person, and whose fault it was."""

from types import SimpleNamespace

import pytest

from dsv3_plugin.distributed.failures import LostRank
from dsv3_plugin.distributed.messages import Outbox
from dsv3_plugin.errors import PassingElsewhere, SaidElsewhere, UserError
from dsv3_plugin.files.run_folder import InUse
from dsv3_plugin.launch import rank


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (PermissionError(13, "Permission denied", "/x"), 2, ("refused", "/x: Permission denied.")),
        (OSError(36, "File name too long", "/y"), 2, ("refused", "/y: File name too long.")),
        (OSError(5, "Gone", "/z"), 1, ("crashed", "OSError: [Errno 5] Gone: '/z'")),
        (KeyError(), 1, ("crashed", "KeyError")),
    ],
)
def test_what_a_place_does_not_allow_is_no_fault_of_ours(error, code, told):
    sent = []
    outbox = SimpleNamespace(has_log=False, send=lambda *words: sent.append(words))
    assert rank._tell(error, outbox) == code
    assert sent == [told]


@pytest.mark.parametrize(
    ("job", "has_parent", "code"), [("7", False, 75), (None, False, 2), ("7", True, 2)]
)
def test_what_may_be_over_at_the_next_start_is_told_to_the_script_of_a_job(
    job, has_parent, code, monkeypatch, tmp_path
):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    outbox = SimpleNamespace(has_log=False, has_parent=has_parent, send=lambda *_: None)
    lost = UserError("step 3: rank 0 lost rank 1")
    lost.__cause__ = LostRank("rank 0 lost rank 1")
    elsewhere = SaidElsewhere("the folder is in use")  # as rank 0 has said
    elsewhere.__cause__ = PassingElsewhere("the folder is in use")
    for passing in (lost, InUse(tmp_path, "directory", "a process"), elsewhere):
        assert rank._tell(passing, outbox) == code
    assert rank._tell(UserError("the recipe is wrong"), outbox) == 2


class _Joined(Exception):
    pass


@pytest.mark.parametrize(
    ("number", "per_node", "launched", "does"),
    [
        ("0", "1", {}, ["rehearses", "joins"]),
        ("1", "1", {}, ["joins"]),
        ("0", "2", {}, ["joins"]),
        ("0", "1", {"DSV3_LAUNCHED": "1"}, ["joins"]),
    ],
    ids=["rank 0 of two nodes", "another rank", "one node", "rehearsed before it was queued"],
)
def test_before_ranks_of_several_nodes_join_rank_0_rehearses(
    number, per_node, launched, does, monkeypatch, tmp_path
):
    done = []
    for name, value in launched.items():
        monkeypatch.setenv(name, value)

    def join(*words):
        done.append("joins")
        raise _Joined

    monkeypatch.setattr(rank, "refuse_what_upstream_would", lambda *words: done.append("rehearses"))
    monkeypatch.setattr(rank, "join_world", join)
    _started(monkeypatch, number, per_node)
    with pytest.raises(_Joined):
        rank._run("pretrain/tiny", [f"directory={tmp_path}/run"], Outbox())
    assert done == does


def test_what_is_refused_is_told_at_once_and_ends_the_ranks_when_they_have_met(
    monkeypatch, tmp_path, capsys
):
    def refuse(*words):
        raise UserError("Megatron refuses it.")

    def first(what, work, outbox):
        assert what == "rehearsal"
        work()

    monkeypatch.setattr(rank, "refuse_what_upstream_would", refuse)
    monkeypatch.setattr(rank, "join_world", lambda *words: print("joined"))
    monkeypatch.setattr(rank, "first_on_rank_zero", first)
    _started(monkeypatch, "0", "1")
    with pytest.raises(SaidElsewhere, match="Megatron refuses it"):
        rank._run("pretrain/tiny", [f"directory={tmp_path}/run"], Outbox())
    said = capsys.readouterr()
    assert said.out == "joined\n"
    assert said.err == "dsv3: Megatron refuses it.\n"


def _started(monkeypatch, number, per_node):
    """As torchrun starts one of the two ranks that the recipe wants."""
    monkeypatch.setattr(rank.signal, "signal", lambda *words: None)
    for name, value in {
        "RANK": number,
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": per_node,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
