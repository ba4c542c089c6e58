"""The memory of a cache where nobody says."""

import torch

from dsv3_plugin.inference.cache import CacheShape
from dsv3_plugin.inference.cache_budget import default_cache


def test_a_cache_is_for_all_texts_that_may_run_and_half_of_the_memory_at_most():
    shape = CacheShape(2, 16, 8, torch.float32)
    assert default_cache(shape, 4, 100) == 8 * shape.page_bytes
    assert default_cache(shape, 10**9, 10**6) < 2**50
