"""What a rank arranges before it joins the others."""

import os

import pytest

from dsv3_plugin.distributed.world import order_kernels


@pytest.mark.parametrize("degree", ["tensor", "context"])
def test_what_upstream_wants_of_the_environment_is_set(monkeypatch, degree):
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    order_kernels(tensor=1, context=1)
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in os.environ
    divided = {"tensor": 1, "context": 1} | {degree: 2}
    order_kernels(**divided)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    order_kernels(**divided)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"
