"""Where tokens went, there and back through JSON."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from dsv3_plugin.inference.routed_experts import coded, decoded, decoded_flat


@given(some.tuples(*[some.integers(0, 5)] * 3), some.sampled_from([1, 8, 256, 257, 2**16, 2**17]))
def test_it_comes_back_as_it_was_by_the_smallest_type(shape, experts):
    known = torch.randint(experts, shape, generator=torch.Generator().manual_seed(0))
    known.flatten()[:1] = experts - 1
    found = decoded(json.loads(json.dumps(coded(known.int().numpy()))))
    assert np.array_equal(found, known.numpy())
    assert found.itemsize == (
        1 if experts <= 256 or not known.numel() else 2 if experts <= 2**16 else 4
    )


def test_it_is_what_numpy_reads():
    """As whoever reads vLLM's does."""
    known = torch.randint(256, (7, 3, 8), dtype=torch.int32)
    text = coded(known.numpy())
    assert np.array_equal(np.load(io.BytesIO(base64.b64decode(text))), known.numpy())
    assert len(text) < 4 / 3 * known.numel() + 200


def saved(array: np.ndarray, **how: object) -> bytes:
    written = io.BytesIO()
    np.save(written, array, **how)
    return written.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no array",
        saved(np.zeros((2, 2, 2), np.uint8))[:-1],
        saved(np.zeros((2, 2, 2), np.uint8)).replace(b"(2, 2, 2)", b"(2**40,)"),
        saved(np.zeros((2, 2, 2), np.uint8)).replace(b"(2, 2, 2)", b"(9, 9, 9)"),
        saved(np.zeros((2, 2, 2))),
        saved(np.array([{}]), allow_pickle=True),
    ],
)
def test_what_is_none_is_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it is, it is counted as one kind
        decoded(base64.b64encode(data).decode())


def test_base64_alone():
    with pytest.raises(ValueError, match="ASCII"):
        decoded("ä")
    assert decoded_flat(base64.b64encode(np.arange(6, dtype="<i4")).decode()).tolist() == [
        *range(6)
    ]
