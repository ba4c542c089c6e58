"""What Transformer Engine's layers unpickle themselves is looked at before they get it."""

import io
import os
import pickle
from fractions import Fraction

import pytest
import torch
import torch.distributed.checkpoint as dcp
from megatron.core.safe_globals import safe_load_from_bytes

from dsv3_plugin.checkpoint.formats.dist_metadata import read_contents
from dsv3_plugin.checkpoint.patches import PATCHES
from dsv3_plugin.checkpoint.restricted import restricted_reading
from dsv3_plugin.errors import UserError
from dsv3_plugin.upstream import patching

KEY = "decoder.layers.0.mlp.linear_fc1._extra_state/shard_0_1"


class Payload:
    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self._mark}",)


def as_tensor(state):
    """As Transformer Engine 2 keeps it."""
    return torch.frombuffer(bytearray(pickle.dumps(state)), dtype=torch.uint8)


def as_file(state):
    """As Transformer Engine 1 kept it."""
    file = io.BytesIO()
    torch.save(state, file)
    return file


@pytest.fixture(autouse=True)
def _applied():
    patching.apply(PATCHES)


def loaded(content, folder):
    whole = dcp.DefaultSavePlanner(flatten_state_dict=False)  # an object, as upstream stores it
    dcp.save({KEY: content}, checkpoint_id=folder, no_dist=True, planner=whole)
    state = {KEY: None}
    with restricted_reading():
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state[KEY]


@pytest.mark.parametrize("form", [as_tensor, as_file])
def test_states_of_layers_pass(form, tmp_path):
    state = {"recipe": None, "extra_fp8_variables": {"num_gemms": 1, "scale": (1.0, b"x")}}
    (kept,) = loaded([form(state)], tmp_path)
    inside = kept.numpy().tobytes() if form is as_tensor else kept.getvalue()
    again = pickle.loads(inside) if form is as_tensor else torch.load(io.BytesIO(inside))
    assert again == state
    read_contents(tmp_path)


def test_tensors_in_the_state_of_a_layer_pass(tmp_path):
    """A pickle of a tensor has its storage in a form from before torch 1.6.

    What reads that is Megatron's, as soon as it is imported.
    """
    assert torch.storage._load_from_bytes is safe_load_from_bytes
    (kept,) = loaded([as_tensor({"scale": torch.ones(3)})], tmp_path)
    with restricted_reading():
        assert torch.equal(pickle.loads(kept.numpy().tobytes())["scale"], torch.ones(3))


@pytest.mark.parametrize("form", [as_tensor, as_file])
def test_a_payload_in_the_state_of_a_layer_is_named(form, tmp_path):
    payload = {"recipe": Payload(tmp_path / "ran")}
    with pytest.raises(UserError, match=r"posix\.system"):
        loaded([form(payload)], tmp_path / "c")
    with pytest.raises(UserError, match=r"posix\.system"):
        read_contents(tmp_path / "c")
    assert not (tmp_path / "ran").exists()


def test_a_payload_deeper_still_is_not_run(tmp_path):
    """In the bytes of a storage inside of the state of a layer."""

    class Storage:
        def __reduce__(self):
            inside = io.BytesIO()
            torch.save(Payload(tmp_path / "ran"), inside, _use_new_zipfile_serialization=False)
            return torch.storage._load_from_bytes, (inside.getvalue(),)

    (kept,) = loaded([as_tensor({"scale": Storage()})], tmp_path / "c")
    with restricted_reading(), pytest.raises(pickle.UnpicklingError, match="Weights only"):
        pickle.loads(kept.numpy().tobytes())
    assert not (tmp_path / "ran").exists()


def test_others_in_the_process_read_as_ever(tmp_path):
    """Fractions are no part of a checkpoint here, and torch loads whatever it is told to."""
    dcp.save({"ours": Fraction(1, 3)}, checkpoint_id=tmp_path, no_dist=True)
    state = {"ours": None}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    assert state == {"ours": Fraction(1, 3)}
    with pytest.raises(UserError, match=r"fractions\.Fraction"), restricted_reading():
        dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
