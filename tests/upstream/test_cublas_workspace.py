"""Transformer Engine's workspace by stream; that products on two streams share none is seen in
tests/pipeline/test_streams.py."""

import functools
from types import SimpleNamespace

import torch

from dsv3_plugin.upstream.cublas_workspace import get_cublas_workspace


def test_each_stream_has_a_workspace_of_each_kind(monkeypatch):
    @functools.cache
    def of_te(device: int, ub: bool, grouped_gemm: bool) -> torch.Tensor:
        return torch.empty(1)

    workspace = get_cublas_workspace(of_te)
    made = {}
    for stream in (7, 8):
        monkeypatch.setattr(
            torch.cuda, "current_stream", lambda device, s=stream: SimpleNamespace(cuda_stream=s)
        )
        for kind in ((0, False, False), (0, True, False), (0, False, True), (1, False, False)):
            made[stream, kind] = workspace(*kind)
            assert workspace(*kind) is made[stream, kind]
    assert len({id(tensor) for tensor in made.values()}) == len(made)
