"""What a live model says of itself."""

import pytest

from dsv3_plugin.checkpoint.live_model import model_of
from dsv3_plugin.distributed.world import single_process
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
