"""What upstream/ replaces of optimizers."""

from typing import Any
from unittest import mock

import pytest
import torch
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer, MegatronOptimizer

import dsv3_plugin
from tests.upstream.stock_gpt import stock_gpt
from tests.upstream.without_a_run.covering import both, of


def optimizer_of(model: torch.nn.Module, zero1: bool = False) -> Any:
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=zero1)
    wrapped = DistributedDataParallel(model.config, ddp, model)
    config = OptimizerConfig(optimizer="adam", lr=1e-2, use_distributed_optimizer=zero1)
    return get_megatron_optimizer(config, [wrapped])


def steps(optimizer: Any, model: torch.nn.Module, count: int) -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(count):
        for parameter in model.parameters():
            parameter.main_grad.copy_(torch.randn(parameter.shape, generator=draw))
        optimizer.step()


@of(
    "megatron.core.optimizer:_get_megatron_optimizer_based_on_param_groups",
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.state_dict",
)
@pytest.mark.parametrize("zero1", [False, True])
def test_upstreams_optimizer_takes_the_same_steps_and_saves_the_same(zero1):
    def trained() -> tuple[dict[str, torch.Tensor], Any]:
        tensor_parallel.model_parallel_cuda_manual_seed(4, force_reset_rng=True)
        model = stock_gpt()
        optimizer = optimizer_of(model, zero1)
        steps(optimizer, model, 3)
        return model.state_dict(), optimizer.state_dict()

    (weights, saved), (ours, kept) = both(trained)
    weights = {name: value for name, value in weights.items() if torch.is_tensor(value)}
    for name, value in weights.items():
        assert torch.equal(value, ours[name]), name
    assert torch.utils._pytree.tree_structure(kept) == torch.utils._pytree.tree_structure(saved)
    for one, other in zip(*map(torch.utils._pytree.tree_leaves, (saved, kept)), strict=True):
        assert torch.equal(one, other) if torch.is_tensor(one) else one == other


@of(
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.load_state_dict",
    "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"
    "._set_main_param_and_optimizer_states",
)
def test_upstreams_sharded_optimizer_goes_on_where_it_was_saved(tmp_path):
    def state(model: torch.nn.Module, optimizer: Any, loading: bool) -> dict[str, Any]:
        weights = model.sharded_state_dict()
        form = {"distrib_optim_sharding_type": "fully_reshardable"}
        return {
            "weights": weights,
            "optimizer": optimizer.sharded_state_dict(weights, loading, metadata=form),
        }

    dsv3_plugin.register()
    model, other = stock_gpt(), stock_gpt()
    optimizer, again = optimizer_of(model, zero1=True), optimizer_of(other, zero1=True)
    steps(optimizer, model, 2)
    dist_checkpointing.save(state(model, optimizer, False), str(tmp_path), async_strategy="mcore")
    loaded = dist_checkpointing.load(state(other, again, True), str(tmp_path))
    other.load_state_dict(loaded["weights"])
    again.load_state_dict(loaded["optimizer"])
    for parameters in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(*parameters)
    for one, trained in ((optimizer, model), (again, other)):
        steps(one, trained, 1)
    for parameters in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(*parameters)


@of("megatron.core.optimizer.optimizer:MegatronOptimizer._filter_and_reorder_param_groups")
def test_groups_that_do_not_match_are_refused_as_upstream_says():
    group = {"wd_mult": 1.0, "lr_mult": 1.0, "is_expert_parallel": False, "max_lr": 0.1}
    current, saved = [group | {"params": [0, 1]}], [group | {"params": [5, 6], "lr": 3.0}]

    def matched() -> list[Any]:
        found = MegatronOptimizer._filter_and_reorder_param_groups(
            current_groups=current, state_dict_groups=[dict(g) for g in saved]
        )
        with pytest.raises(ValueError, match="Could not find parameter group"):
            MegatronOptimizer._filter_and_reorder_param_groups(
                current, [g | {"max_lr": 0.2} for g in saved]
            )
        return found

    before, after = both(matched)
    assert after == before
    assert before[0]["lr"] == 3.0


@of("megatron.core.optimizer.optimizer:ChainedOptimizer.load_state_dict")
def test_an_optimizer_that_rank_0_has_empty_goes_on_at_the_step_of_the_others():
    def loaded() -> list[Any]:
        chain = mock.create_autospec(ChainedOptimizer, instance=True)
        chain.chained_optimizers = [mock.Mock(), mock.Mock()]
        unsharded = {
            0: {"state": {0: {"exp_avg": 1}, "common_step": torch.tensor(7.0)}, "param_groups": []},
            1: {"optimizer": {"state": {0: {"exp_avg": 2}}, "param_groups": []}},
        }
        sharded = {
            0: {"optimizer": {"param_groups": [{"step": 7}, {"step": 7}]}},
            1: {"optimizer": {"param_groups": [{"step": 0}, {"lr": 0.1}]}},
        }
        for saved in (unsharded, sharded):
            ChainedOptimizer.load_state_dict(chain, saved)
        one, other = (o.load_state_dict.call_args_list for o in chain.chained_optimizers)
        assert float(one[0].args[0]["state"]["common_step"]) == 7
        groups = [g.get("step") for g in other[1].args[0]["optimizer"]["param_groups"]]
        return [other[0].args[0]["optimizer"]["state"].get("common_step"), *groups]

    before, after = both(loaded)
    assert before == [None, 0, None]
    assert after == [7, 7, 7]
