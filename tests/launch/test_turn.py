"""Whose turn it is in the folder of a run."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.launch import turn
from dsv3_plugin.launch.job_record import JobRecord, write_record
from dsv3_plugin.recipe.load import load_recipe


def test_a_job_may_begin_before_what_wrote_it_down_is_seen(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    write_record(run, JobRecord("7", "cpu", "", 0.0))
    seen = lambda _: write_record(run, JobRecord("8", "cpu", "", 0.0))  # noqa: E731
    monkeypatch.setattr(turn.time, "sleep", seen)
    turn.refuse_another_job(run, "8", 1000.0)
    with pytest.raises(UserError, match=r"job 7 leaves the run in .* alone: that is job 8 now"):
        turn.refuse_another_job(run, "7", 0.0)


def test_what_was_not_launched_as_a_job_is_none(tmp_path):
    with pytest.raises(UserError, match="alone: nothing there names it"):
        turn.refuse_another_job(RunFolder(tmp_path), "7", 0.0)


def test_who_holds_the_folder_is_waited_for_and_told_once(tmp_path, monkeypatch):
    run, told, looks = RunFolder(tmp_path), [], []
    holding = run.held()
    holding.__enter__()

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            holding.__exit__(None, None, None)

    monkeypatch.setattr(turn.time, "sleep", look)
    assert turn.wait_for_folder(run, 1000.0, told.append, lambda: False) is None
    assert len(looks) == 3
    (sentence,) = told
    assert sentence.startswith("Waiting for process ")
    assert sentence.endswith(f", which holds {tmp_path}, to end.")


def test_who_stays_is_named_and_a_cancelled_run_waits_for_nobody(tmp_path):
    run = RunFolder(tmp_path / "run", tmp_path / "checkpoints")
    with RunFolder(tmp_path / "another", tmp_path / "checkpoints").held():
        held = turn.wait_for_folder(run, 0.0, print, lambda: False)
        assert held is not None
        assert held.folder == tmp_path / "checkpoints"
        assert turn.wait_for_folder(run, 1000.0, print, lambda: True) is None


def test_a_rank_is_waited_for_as_long_as_it_may_wait_for_others():
    words = ("parallel.timeout_minutes=5", "pipeline.timeout=900")
    assert turn.patience_s(load_recipe("pretrain/tiny", words)) == 900 + 120
    assert turn.patience_s(load_recipe("pretrain/tiny", words[:1])) == 300 + 120
