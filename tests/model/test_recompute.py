"""Recomputing activations, every way upstream offers for these layers, changes nothing."""

import subprocess

import pytest
import torch
from megatron.core.tensor_parallel import random
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput

from dsv3_plugin.model.build import build_model
from dsv3_plugin.upstream.recompute import checkpoint_without_output_init, get_share_storage
from tests import oracles

MODEL = oracles.model_config(mtp_num_layers=1)

WAYS = {
    "norms and MLA up-projections": ["layernorm", "mla_up_proj"],
    "core attention": ["core_attn"],
    "shared experts and dense layers": ["shared_experts", "mlp"],
    "whole MoE layers": ["moe"],
}


def gradients(**overrides):
    model = build_model(MODEL, **overrides).train()
    oracles.randomize(model, seed=2)
    tokens = torch.randint(96, (2, 17), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(16).expand(2, 16)
    loss = model(tokens[:, :-1].contiguous(), positions, None, labels=tokens[:, 1:].contiguous())
    loss.mean().backward()
    counts = model.decoder.layers[1].mlp.router.local_tokens_per_expert
    return {name: p.grad for name, p in model.named_parameters()} | {"counts": counts}


@pytest.fixture(scope="module")
def expected(world):
    return gradients()


@pytest.mark.parametrize("way", WAYS)
def test_selective(way, expected, monkeypatch):
    # As the table of patches does.
    init = checkpoint_without_output_init(CheckpointWithoutOutput.__init__)
    monkeypatch.setattr(CheckpointWithoutOutput, "__init__", init)
    monkeypatch.setattr(random, "_get_share_storage", get_share_storage(random._get_share_storage))
    same(gradients(recompute_granularity="selective", recompute_modules=WAYS[way]), expected)


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("Ninja is required to load C++ extensions\n(pip install ninja to get it)"),
        FileNotFoundError(2, "No such file or directory", "c++"),
        subprocess.CalledProcessError(1, "c++"),
    ],
    ids=["no ninja", "no compiler", "a compiler that fails"],
)
def test_where_nothing_can_be_compiled_bytes_are_copied(failure, expected, monkeypatch):
    def cannot(*_, **__):
        raise failure

    monkeypatch.setattr(random, "_share_storage_ext", None)
    monkeypatch.setattr(random, "load_inline", cannot)
    monkeypatch.setattr(random, "_get_share_storage", get_share_storage(random._get_share_storage))
    init = checkpoint_without_output_init(CheckpointWithoutOutput.__init__)
    monkeypatch.setattr(CheckpointWithoutOutput, "__init__", init)
    way = WAYS["norms and MLA up-projections"]
    with pytest.warns(UserWarning, match="copied once more") as told:
        again = gradients(recompute_granularity="selective", recompute_modules=way)
    same(again, expected)
    assert len([warning for warning in told if "copied once more" in str(warning.message)]) == 1


def test_full(expected):
    full = {"recompute_granularity": "full", "recompute_method": "uniform"}
    same(gradients(**full, recompute_num_layers=1), expected)


@pytest.mark.parametrize("with_te", [False, True])
@pytest.mark.parametrize("given", [{}, {"fp8": False}, {"fp8": None}, {"fp8": "e4m3"}])
def test_upstreams_answer_stands_where_transformer_engine_is(with_te, given, monkeypatch):
    monkeypatch.setattr(random, "HAVE_TE", with_te)
    upstreams = CheckpointWithoutOutput(**given).fp8
    init = checkpoint_without_output_init(CheckpointWithoutOutput.__init__)
    monkeypatch.setattr(CheckpointWithoutOutput, "__init__", init)
    ours = CheckpointWithoutOutput(**given).fp8
    assert ours == (upstreams if with_te else bool(given.get("fp8")))


def same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6, msg=name)
