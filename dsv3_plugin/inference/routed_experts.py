"""Where tokens went, as a text in JSON: what a server tells of its answers, and who trains on them
reads.

The numbers of experts are small, and many: for each token of DeepSeek-V3 58 · 8. So they are told
as NumPy writes an array into a file, by the smallest type that holds them, in base64: that has
their type and shape with it, and is how vLLM tells them at `/inference/v1/generate`.
"""

import base64
import io
import math
import tokenize

import numpy as np

Experts = np.ndarray
"""[tokens, MoE layers, top-k], integers."""


def coded(experts: Experts) -> str:
    """A text that says where tokens went.

    Args:
        experts: none negative.
    """
    written = io.BytesIO()
    np.save(written, experts.astype(np.min_scalar_type(int(experts.max(initial=0)))))
    return base64.b64encode(written.getvalue()).decode()


def decoded(text: str) -> Experts:
    """What `coded` has written.

    Raises:
        ValueError: the text is something else.
    """
    data = io.BytesIO(base64.b64decode(text, validate=True))
    if np.lib.format.read_magic(data) != (1, 0):
        raise ValueError("an array of another version")
    try:
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(data)
    except (SyntaxError, tokenize.TokenError) as error:  # a header is Python's text
        raise ValueError(str(error)) from None
    values = data.read()
    # Before memory is taken for it: who writes a header may say anything.
    if dtype.kind not in "iu" or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError("no array of integers, or only a part of one")
    return np.frombuffer(values, dtype).reshape(shape, order="F" if by_columns else "C")


def decoded_flat(text: str) -> Experts:
    """What SGLang writes: int32, without its shape; `[numbers]`.

    Raises:
        ValueError: the text is something else.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), np.dtype("<i4"))
