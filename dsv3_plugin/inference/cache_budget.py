"""How much memory a cache takes where nobody says."""

import psutil
import torch

from dsv3_plugin.inference.cache import CacheShape


def default_cache(shape: CacheShape, running: int, longest: int) -> int:
    """Bytes of a cache: for as many of the longest texts as may run, or half of the free memory."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
    else:
        free = psutil.virtual_memory().available
    return min(running * shape.bytes_for([longest]), free // 2)
