"""Padding stays padding in multi-token prediction.

A layer that predicts ahead sees each place with the token after it, so upstream shifts the mask of
padding by one as it does the tokens, and fills the end with "no padding": of every padded sequence
(with sequence parallelism, of every rank's part of it) the last place would count in the layer's
router.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch


def get_embeddings(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps upstream's `MultiTokenPredictionLayer._get_embeddings`."""

    @functools.wraps(original)
    def with_padding(
        self: Any, *args: Any, padding_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        inputs, positions, shifted, *rest = original(
            self, *args, padding_mask=padding_mask, **kwargs
        )
        if padding_mask is not None:
            shifted = shifted | padding_mask
        return inputs, positions, shifted, *rest

    return with_padding
