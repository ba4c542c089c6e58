"""What a run on several nodes is asked before its ranks train."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.rank import _on_several_nodes
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rehearsal.quick import refuse_what_upstream_would

CPU = Machine(gpus=0, transformer_engine=False)


def _asked(*overrides: str) -> None:
    recipe = load_recipe("pretrain/tiny", overrides)
    refuse_what_upstream_would("pretrain/tiny", overrides, recipe, CPU)


def test_what_upstream_takes_goes_on() -> None:
    _asked()


def test_what_upstream_refuses_does_not_start() -> None:
    with pytest.raises(UserError, match="Megatron refuses these settings"):
        _asked("megatron_args.no-such-flag=1")


@pytest.mark.parametrize(("per_node", "several"), [("1", True), ("2", False), (None, False)])
def test_ranks_of_other_machines_are_told_by_the_launcher(
    monkeypatch: pytest.MonkeyPatch, per_node: str | None, several: bool
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    if per_node is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", per_node)
    assert _on_several_nodes(load_recipe("pretrain/tiny", [])) is several
