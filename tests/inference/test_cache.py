"""What is remembered of a token, in bytes, and what the memory is divided into."""

import pytest
import torch

from dsv3_plugin.errors import UserError
from dsv3_plugin.inference.attention import HeadShape
from dsv3_plugin.inference.cache import CacheShape, LatentCache
from dsv3_plugin.model.config import transformer_config
from dsv3_plugin.recipe.model import ModelConfig


@pytest.fixture(scope="module")
def full_size():
    model = ModelConfig.read("recipes/models/deepseek-v3.yaml")
    return transformer_config(model, dtype=torch.bfloat16)


def test_576_values_a_token_and_layer_at_full_size(full_size):
    shape = CacheShape.of(full_size)
    assert shape.width == 576
    assert shape.token_bytes == 61 * 576 * 2 == 70_272
    assert shape.bytes_for([1, 64, 65]) == 4 * 64 * 70_272
    assert CacheShape.of(full_size, moe_layers=58).token_bytes == 70_272 + 58 * 8 * 4


def test_the_cache_takes_what_its_shape_says():
    shape = CacheShape(3, 16, 8, torch.bfloat16, (2, 4))
    cache = LatentCache(shape, 5, torch.device("cpu"))
    assert cache.nbytes == 5 * shape.page_bytes
    assert shape.pages_in(5 * shape.page_bytes + 7) == 5
    with pytest.raises(UserError, match="give it more"):
        shape.pages_in(shape.page_bytes - 1)


def test_absorbed_for_few_tokens_plain_for_many(full_size):
    shape = HeadShape.of(full_size)
    assert shape.absorbed_is_cheaper(1, 2)
    assert shape.absorbed_is_cheaper(4, 4096)
    assert not shape.absorbed_is_cheaper(4096, 4096)
    # (c (d + d_v)) / (2 c - d - d_v) = 512 · 256 / 768 tokens, however long the past
    assert shape.absorbed_is_cheaper(170, 10**6)
    assert not shape.absorbed_is_cheaper(171, 10**6)
