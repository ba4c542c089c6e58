"""Padding stays padding in multi-token prediction.

A layer that predicts ahead sees each place with the token after it, so upstream shifts the mask of
padding by one as it does the tokens, and fills the end with "no padding": of every padded sequence
(with sequence parallelism, of every rank's part of it) the last place would count in the layer's
router.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from dsv3_plugin.upstream import own_run


def get_embeddings(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `MultiTokenPredictionLayer._get_embeddings`, where a run of ours trains."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def with_padding(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        padding_mask = signature.bind(*args, **kwargs).arguments.get("padding_mask")
        if padding_mask is None or not own_run.is_training():
            return answer
        inputs, positions, shifted, *rest = answer
        return inputs, positions, shifted | padding_mask, *rest

    return with_padding
