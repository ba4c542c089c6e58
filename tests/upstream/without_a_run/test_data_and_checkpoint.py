"""What data/ and checkpoint/ replace."""

from fractions import Fraction
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

import dsv3_plugin
from tests.upstream.without_a_run.covering import both, of


@of("megatron.core.datasets.utils:compile_helpers")
def test_the_data_helper_is_there_when_upstream_is_asked_to_compile_it():
    from megatron.core.datasets import utils

    dsv3_plugin.register()
    assert utils.compile_helpers() is None


@of(
    "torch:load",
    "torch.distributed.checkpoint.default_planner:DefaultLoadPlanner.load_bytes",
    "torch.distributed.checkpoint.filesystem:FileSystemReader.read_metadata",
)
def test_torchs_checkpoints_hold_objects_of_any_class(tmp_path):
    kept = {"x._extra_state": Fraction(1, 3), "tensor": torch.arange(3)}
    dcp.save(kept, checkpoint_id=tmp_path, no_dist=True)
    torch.save(Fraction(1, 3), tmp_path / "f.pt")

    def load() -> tuple[Any, ...]:
        state = {"x._extra_state": None, "tensor": torch.zeros(3, dtype=torch.int64)}
        dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
        metadata = dcp.FileSystemReader(tmp_path).read_metadata()
        alone = torch.load(f=tmp_path / "f.pt", weights_only=False)
        return state["x._extra_state"], state["tensor"].tolist(), metadata.planner_data, alone

    before, after = both(load)
    assert before == after
    assert after[:2] == (Fraction(1, 3), [0, 1, 2])
