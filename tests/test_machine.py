"""What a machine has."""

import importlib.util

import pytest

from dsv3_plugin import machine
from dsv3_plugin.machine import Machine


@pytest.mark.parametrize(
    ("devices", "visible", "gpus"),
    [
        (4, None, 4),
        (4, "0,2", 2),
        (4, "", 0),
        (4, "-1", 0),
        (4, "NoDevFiles", 0),
        (4, "1,-1,2", 1),
        (4, "GPU-3f1c, 2", 2),
        (1, "0,1,2", 1),
        (0, None, 0),
        (0, "0", 0),
    ],
)
def test_gpus_are_those_that_may_be_used(devices, visible, gpus, tmp_path, monkeypatch):
    for name in [*(f"nvidia{number}" for number in range(devices)), "nvidiactl", "nvidia-uvm"]:
        (tmp_path / name).touch()
    monkeypatch.setattr(machine, "_DEVICES", tmp_path)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Machine.here().gpus == gpus


@pytest.mark.parametrize("found", [None, object()])
def test_transformer_engine_is_looked_for(found, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", {"transformer_engine": found}.get)
    assert Machine.here().transformer_engine == (found is not None)
