"""What a live model says of itself."""

import pytest
import torch

from dsv3_plugin.checkpoint.live_model import iter_hf_tensors, model_of
from dsv3_plugin.distributed.world import single_process
from dsv3_plugin.errors import UserError
from dsv3_plugin.model.build import build_model
from tests.oracles import model_config

YARN = {
    "rope_type": "yarn", "rotary_scaling_factor": 4.0, "original_max_position_embeddings": 16,
    "mscale": 0.7, "mscale_all_dim": 0.7,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"mtp_num_layers": 1, "share_embeddings_and_output_weights": True},
        {"moe_aux_loss_coeff": 1e-3, "moe_router_load_balancing_type": "seq_aux_loss", **YARN},
    ],
)
def test_a_live_model_is_described_whole(changes):
    model = model_config(**changes)
    with single_process():
        described = model_of(build_model(model))
    assert described == model.model_copy(update={"name": "model"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("runs/tiny/checkpoints", "takes a model in memory .* not str"),
        ([{"weight": torch.zeros(1)}], "takes a model in memory .* not dict"),
        (torch.nn.Linear(2, 2), "Linear is no GPTModel"),
    ],
)
def test_what_is_no_model_is_refused_in_a_sentence(given, said):
    with pytest.raises(UserError, match=said):
        next(iter_hf_tensors(given))
