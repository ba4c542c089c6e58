"""Experts as servers tell them, of layers that route or of all."""

import numpy as np
import pytest

from dsv3_plugin.rollouts.routing import Routing
from tests import oracles

ROUTING = Routing.of(oracles.model_config(num_layers=3))
TOLD = np.random.default_rng(0).integers(0, ROUTING.experts, (5, 2, ROUTING.top_k))


def of_all_layers(told: np.ndarray) -> np.ndarray:
    """With something in the place of the first layer, which is dense."""
    return np.concatenate([np.full((5, 1, ROUTING.top_k), -1), told], axis=1)


def test_a_model_with_a_dense_layer() -> None:
    assert (ROUTING.layers, ROUTING.moe_layers) == (3, (1, 2))


@pytest.mark.parametrize(
    "told", [TOLD, TOLD.ravel(), of_all_layers(TOLD), of_all_layers(TOLD).ravel().astype("<i4")]
)
def test_what_is_told_of_a_text(told: np.ndarray) -> None:
    found = ROUTING.of_tokens(told, 5)
    assert np.array_equal(found.numpy(), TOLD)
    assert found.numpy().dtype == np.int32


@pytest.mark.parametrize(
    "told",
    [
        TOLD[1:],
        TOLD[:, :, :-1],
        TOLD.reshape(2, 5, ROUTING.top_k),
        TOLD.ravel()[:-1],
        TOLD + ROUTING.experts,
        TOLD - ROUTING.experts,
    ],
)
def test_what_is_of_another_text_or_model(told: np.ndarray) -> None:
    assert ROUTING.of_tokens(told, 5) is None
