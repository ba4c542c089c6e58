"""JSON with bounds: strict, and every refusal a ValueError with its reason."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.files import json_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)  # fmt: skip


@given(VALUES)
@settings(max_examples=50)
def test_what_is_json_is_read(value):
    assert json_text.parse(json.dumps(value).encode()) == value


@given(st.binary(max_size=60) | st.text('[]{}",:0123456789.eE+-\\utrfalsn NI', max_size=60))
@settings(max_examples=150)
def test_anything_else_is_a_value_error(data):
    with contextlib.suppress(ValueError):
        json_text.parse(data.encode() if isinstance(data, str) else data)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ('{"a":' * 100_000, "nested deeper than 64 levels"),
        ("[" + "1," * 2_000_000, "more than 2,000,000 values"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is given twice"),
        ("[NaN]", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("1e999", "1e999 is no number"),
        ("9" * 5000, "limit"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_what_nobody_means_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        json_text.parse(text.encode())


def test_depth_is_counted_exactly():
    assert json_text.parse(b"[" * 64 + b"]" * 64)


def test_a_file_is_read_as_far_as_it_may_be_long(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert json_text.read_object(path) == {"a": 1}
    path.write_text("[]")
    with pytest.raises(ValueError, match="no JSON object"):
        json_text.read_object(path)
    with path.open("wb") as file:
        file.truncate(10**12)  # a file of zeros that takes no disk
    with pytest.raises(json_text.TooMuch, match=r"larger than 100.0 MB"):
        json_text.read(path)
