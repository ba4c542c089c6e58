"""TE's Python over shapes: a linear layer, forward and backward, against what TE's source says."""

from pathlib import Path

import pytest

from tests.rehearsal.te.rehearsed import rehearsed


@pytest.fixture(scope="module")
def linear() -> dict:
    return rehearsed(Path(__file__).with_name("one_linear.py"))


def test_the_version_is_the_one_set_aside(linear: dict):
    assert linear["version"] == "2.20.2"


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_results_have_their_shapes(linear: dict, precision: str):
    seen = linear[precision]
    assert seen["output"] == [4096, 2048]
    assert seen["input gradient"] == [4096, 7168]
    assert seen["weight gradient"] == [2048, 7168]


def test_in_bf16_the_input_is_kept_as_it_came(linear: dict):
    assert [4096, 7168] in [shape for shape, _ in linear["bf16"]["kept"]]
    assert [name for name, *_ in linear["bf16"]["forward"]] == ["gemm"]
    assert [name for name, *_ in linear["bf16"]["backward"]] == ["gemm", "gemm"]


def test_in_fp8_the_input_is_kept_by_columns(linear: dict):
    """Its values transposed, one scale for 128 rows of a column; weights are kept both ways."""
    kept = [(tuple(shape), kind) for shape, kind in linear["fp8"]["kept"]]
    assert ((7168, 4096), "torch.uint8") in kept
    assert ((4096 // 128, 7168), "torch.float32") in kept
    assert ((2048, 7168), "torch.uint8") in kept
    assert ((7168, 2048), "torch.uint8") in kept
    assert ((4096, 7168), "torch.uint8") not in kept


def test_in_fp8_each_product_reads_one_order_of_each_operand(linear: dict):
    names = [name for name, *_ in linear["fp8"]["forward"] + linear["fp8"]["backward"]]
    assert names == ["quantize", "quantize", "gemm", "quantize", "gemm", "gemm"]
    (_, reads, writes) = linear["fp8"]["forward"][-1]
    assert reads == [[2048, 7168], [16, 56], [4096, 7168], [56, 4096]]
    assert writes == [[4096, 2048]]
