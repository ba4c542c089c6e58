"""YAML by the 1.2 core rules, with bounds: every refusal is a sentence."""

import contextlib
import itertools

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe import yaml_text

_LETTERS = "abcdefghij"


def bomb(inner: str) -> str:
    """Nine aliases of nine aliases of nine…"""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for below, letter in itertools.pairwise(_LETTERS):
        lines.append(f"{letter}: &{letter} {inner.format(', '.join([f'*{below}'] * 9))}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (bomb("[{}]"), "line 5: more than 20,000 values"),
        (bomb("{{k: [{}]}}"), "line 5: more than 20,000 values"),
        ("a: &a [*a]", "line 1: an alias stands inside what it names"),
        ("a: " + "[" * 100_000, "nested deeper than 40 levels"),
        ("- " * 100_000, "nested deeper than 40 levels"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: !!binary aGk=", "could not determine a constructor"),
        ("a: !!timestamp x", "could not determine a constructor"),
        ("a: !!float abc", "'abc' is no float"),
        ("a: !!int 0x", "'0x' is no int"),
        ("a: " + "9" * 5000, "is no int"),
        ("!!map [1]", "expected a mapping node"),
        ('a: "\\UFFFFFFFF"', "this is not YAML"),
        ("<<: {a: 1}\n<<: {b: 1}", "the key '<<' is given twice"),
        ("<<: {a: 1, a: 2}", "the key 'a' is given twice"),
        ("a: 1\n<<: 3", "line 2: expected a mapping or list of mappings for merging"),
        ("a: 1\n1: 2", "line 2: the key 1 must be a word: put it in quotes to make it one"),
        ("a: {true: 2}", "line 1: the key true must be a word"),
        ("~: 2", "line 1: the key ~ must be a word"),
        ("[a]: 2", "line 1: a key must be a plain word"),
        ("a: 1\n---\nb: 2", "line 2: another document begins (---), and one is all that there may"),
        ("a: &a {b: 1}\nc: &c {<<: *a, b: *c}", "an alias stands inside what it names"),
    ],
)
def test_what_nobody_means_is_refused(text, problem):
    with pytest.raises(UserError, match=r"^file.*") as refused:
        yaml_text.parse(text, "file")
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-11-25", "2026-11-25"), ("12:30:45", "12:30:45"), ("0x10", "0x10"), ("=", "="),
        ("yes", "yes"), ("1e3", 1000.0), ("1_000", 1000), ("007", "007"), ("~", None),
        ("!!str 12", "12"), ("!!float 3", 3.0), ("-.inf", float("-inf")), ("True", True),
        ("[&x 1, *x]", [1, 1]),
        ("[<<, '<<']", ["<<", "<<"]), ("{'1': 2, 007: 3}", {"1": 2, "007": 3}),
    ],
)  # fmt: skip
def test_scalars(text, value):
    assert yaml_text.parse(text, "file") == value


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1, y: {z: 2}}\nb: {<<: *a, x: 3}",
        "b: {x: 3, <<: *a}\n",
        "a: &a {x: 1}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, w: 1}\nd: {x: 4, <<: *b}",
        "a: &a {x: 1}\nb: &b {x: 2, y: 5}\nc: {<<: [*a, *b]}\nd: {<<: [*b, *a], y: 0}",
        "a: &a {x: 1}\n<<: *a\nb: {<<: {y: 1}}",
    ],
)
def test_mappings_are_merged_as_pyyaml_does(text):
    if text.startswith("b"):
        text = "a: &a {x: 1, y: 2}\n" + text
    assert yaml_text.parse(text, "file") == yaml.safe_load(text)


SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=6)


@given(st.dictionaries(st.text(max_size=4), SCALARS | st.lists(SCALARS, max_size=3), max_size=4))
@settings(max_examples=40)
def test_what_is_written_is_read_back(data):
    assert yaml_text.parse(yaml_text.dump(data), "file") == data


@given(st.text("[]{}&*!|>%@`'\"#:,-? \n\tab01.e~<=\\", max_size=30))
@settings(max_examples=200)
def test_anything_is_read_or_refused(text):
    with contextlib.suppress(UserError):
        yaml_text.parse(text, "file")


def test_a_file_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(UserError, match=r"recipe.yaml: it is larger than 1.0 MB"):
        yaml_text.read_mapping(path)
