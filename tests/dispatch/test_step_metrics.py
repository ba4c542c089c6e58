"""What a step counts of its dispatch, in one process; over ranks see test_moe_layer.py."""

import torch

from dsv3_plugin.dispatch.step_metrics import collect_step_metrics
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.model.build import build_model
from tests import oracles


def test_padding_is_no_load():
    tokens = torch.arange(32).view(2, 16)
    positions = torch.arange(16).expand(2, 16)
    padding = torch.zeros(2, 16, dtype=torch.bool)
    padding[0, 11:] = True
    with single_process(seed=1):
        model = build_model(oracles.model_config()).train()
        model(tokens, positions, None, labels=tokens, padding_mask=padding)
        metrics = collect_step_metrics([model])
    assert list(metrics["expert_load"]) == ["1", "2"]
    for load in (*metrics["expert_load"].values(), *metrics["rank_load"].values()):
        assert sum(load) == (32 - 5) * 4
