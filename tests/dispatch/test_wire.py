"""Rows on the wire: what is packed comes out again, at the width that is announced."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.dispatch.topology import Topology
from dsv3_plugin.dispatch.wire import NOT_ROUTED, Row, row_widths
from dsv3_plugin.fp8.quantize import dequantize_tiles, quantize_tiles


@settings(max_examples=60)
@given(
    hidden=st.integers(1, 300),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    fp8=st.booleans(),
    weights=st.integers(0, 9),
    weight_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    tokens=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_what_is_packed_comes_out(hidden, dtype, fp8, weights, weight_dtype, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    row = Row(hidden, dtype, fp8, weights, weight_dtype)
    x = torch.randn(tokens, hidden, generator=generator).to(dtype)
    chosen = torch.randint(tokens, (2 * tokens,), generator=generator) if tokens else None
    carried = None
    if weights:
        copies = tokens if chosen is None else len(chosen)
        carried = torch.rand(copies, weights, generator=generator).to(weight_dtype)
        carried[:, 0] = NOT_ROUTED
    message = row.pack(row.encode(x), chosen, carried)
    assert message.shape[1] == row.bytes
    assert row.bytes % 8 == 0
    expected = x if chosen is None else x[chosen]
    if fp8:
        expected = dequantize_tiles(*quantize_tiles(expected, power_of_two=True), dtype)
    encoded, arrived = row.unpack(message)
    assert torch.equal(row.decode(encoded), expected)
    assert (arrived is None) == (not weights)
    if weights:
        assert torch.equal(arrived, carried)


def test_nan_travels_in_fp8():
    x = torch.ones(2, 256)
    x[1, 200] = float("nan")
    row = Row(256, torch.float32, fp8=True)
    received = row.decode(row.unpack(row.pack(row.encode(x), None, None))[0])
    assert bool(received[1, 128:].isnan().all())
    assert int(received.isnan().sum()) == 128


@pytest.mark.parametrize(
    ("fp8", "dispatch", "gradient"), [(False, 14336, 14336), (True, 7224, 7224)]
)
def test_widths_of_deepseek_v3(fp8, dispatch, gradient):
    # 7168 BF16 values are 14336 bytes; in FP8 7168 and 56 scales of a byte. A node holds 32
    # experts and a rank 4, whose weights are FP32.
    widths = row_widths(Topology(64, 8, 256), 7168, torch.bfloat16, torch.float32, fp8=fp8)
    assert widths.dispatch_rail == dispatch + 32 * 4
    assert widths.dispatch_node == dispatch + 4 * 4
    assert widths.combine == 14336
    assert widths.combine_gradient == gradient
    assert widths.dispatch_gradient_node == 14336 + 4 * 4
    assert widths.dispatch_gradient_rail == 14336 + 32 * 4
