"""torch's AdamW beneath upstream's optimizer, held against torch's AdamW by itself."""

import pytest
import torch

import dsv3_plugin
from dsv3_plugin.upstream import cpu_host, own_run
from tests import oracles

STEPS = 3


@pytest.fixture
def optimizer():
    """Upstream's optimizer of one small model in a run of ours; its gradients are drawn."""
    cpu_host.enable()
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from dsv3_plugin.distributed.world import single_process
    from dsv3_plugin.model.build import build_model

    dsv3_plugin.register()
    with single_process(), own_run.training():
        model = build_model(oracles.model_config())
        wrapped = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
        config = OptimizerConfig(
            optimizer="adam", lr=1e-2, weight_decay=0.1, adam_beta2=0.95, adam_eps=1e-20
        )
        yield get_megatron_optimizer(config, [wrapped])
    dsv3_plugin.unregister()


def test_a_step_is_fused_and_is_torchs_own(optimizer):
    draw = torch.Generator().manual_seed(0)
    for part in optimizer.chained_optimizers:
        groups = part.optimizer.param_groups
        assert [group["fused"] for group in groups] == [True] * len(groups)
        ours = [parameter for group in groups for parameter in group["params"]]
        theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
        taken = iter(theirs)
        reference = torch.optim.AdamW(
            [{**group, "fused": None, "params": [next(taken) for _ in group["params"]]}
             for group in groups]
        )  # fmt: skip
        for _ in range(STEPS):
            for mine, other in zip(ours, theirs, strict=True):
                other.grad = torch.randn(mine.shape, generator=draw)
                mine.grad = other.grad.clone()
            part.optimizer.step()
            reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_checkpoint_of_steps_that_were_not_fused_goes_on_fused(optimizer):
    for part in optimizer.chained_optimizers:
        saved = part.optimizer.state_dict()
        groups = [group | {"fused": None} for group in saved["param_groups"]]
        part.optimizer.load_state_dict(saved | {"param_groups": groups})
        assert all(group["fused"] for group in part.optimizer.param_groups)
