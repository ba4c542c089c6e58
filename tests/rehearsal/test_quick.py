"""What a run on several nodes is asked before its ranks train."""

from typing import Any

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.rank import _on_several_nodes
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rehearsal import quick
from dsv3_plugin.rehearsal.quick import refuse_what_upstream_would
from dsv3_plugin.rehearsal.report import Finding, RankReport

CPU = Machine(gpus=0, transformer_engine=False)


def _asked(*overrides: str) -> list[str]:
    recipe = load_recipe("pretrain/tiny", overrides)
    told: list[str] = []
    refuse_what_upstream_would("pretrain/tiny", overrides, recipe, CPU, told.append)
    return told


@pytest.mark.usefixtures("forked_rehearsals")
def test_what_upstream_takes_goes_on() -> None:
    assert _asked() == []


def test_what_upstream_refuses_does_not_start() -> None:
    with pytest.raises(UserError, match="Megatron refuses these settings"):
        _asked("megatron_args.no-such-flag=1")


def test_a_rehearsal_that_fails_itself_is_told_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed = RankReport(0, 0, (Finding("rank 0 was ended by SIGKILL", "it says why"),), True)
    monkeypatch.setattr(quick, "rehearsed", lambda *requests, **options: [killed])
    told = [
        "The rehearsal of the configuration failed, and the run goes on without it: rank 0 was "
        "ended by SIGKILL (it says why)."
    ]
    assert _asked() == told

    def no_process(*requests: Any, **options: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(quick, "rehearsed", no_process)
    (sentence,) = _asked()
    assert sentence.endswith("goes on without it: [Errno 12] Cannot allocate memory.")


def test_what_only_is_to_be_said_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = RankReport(0, 0, (Finding("it is so", stops=False),))
    monkeypatch.setattr(quick, "rehearsed", lambda *requests, **options: [said])
    assert _asked() == []


@pytest.mark.parametrize(("per_node", "several"), [("1", True), ("2", False), (None, False)])
def test_ranks_of_other_machines_are_told_by_the_launcher(
    monkeypatch: pytest.MonkeyPatch, per_node: str | None, several: bool
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    if per_node is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", per_node)
    assert _on_several_nodes(load_recipe("pretrain/tiny", [])) is several
