"""Costs of the stages of a real model."""

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.stage_costs import model_stages
from dsv3_plugin.recipe.load import load_model
from dsv3_plugin.schedules.costs import Costs


def test_costs_of_a_models_stages():
    model = load_model("deepseek-v3")
    costs = model_stages(model, [1, *[2] * 30, 0], 16, Costs())
    assert sum(costs.forward) == pytest.approx(16)
    # The head and the MTP layer (its head, its projection and one layer) are worth 3.9 layers.
    assert costs.forward[31] / costs.forward[20] * 2 == pytest.approx(3.92, abs=0.02)
    assert costs.hidden[0] == costs.hidden[1] / 2 == 0  # dense layers exchange nothing
    assert costs.hidden[31] == pytest.approx(costs.hidden[20] / 2)
    assert costs.activation[0] == costs.activation[31] == pytest.approx(16 / 62)
    with pytest.raises(UserError, match="60 layers together, but deepseek-v3 has 61"):
        model_stages(model, [2] * 30 + [0, 0], 16, Costs())
