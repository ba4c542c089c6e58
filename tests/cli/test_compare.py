"""What `dsv3 verify` prints of many differences."""

import json

import pytest

from dsv3_plugin.checkpoint.conversion.verify import Comparison, Difference
from dsv3_plugin.cli.compare import json_of, print_comparison

NAN = float("nan")


def lines(capsys, comparison, most):
    print_comparison(comparison, tolerance=0.0, most=most)
    return capsys.readouterr().out.splitlines()


def test_differences_are_listed_largest_first(capsys):
    found = [
        Difference("a", "values differ", 0.25),
        Difference("b", "values differ", NAN),
        Difference("c", "values differ", 2.0),
    ]
    assert lines(capsys, Comparison(5, found, []), most=20) == [
        "5 tensors are the same, bit for bit.",
        "3 differ:",
        "  b: values differ, by up to nan",
        "  c: values differ, by up to 2",
        "  a: values differ, by up to 0.25",
    ]


def test_values_that_differ_come_before_what_is_in_one_alone(capsys):
    found = [Difference("a", "only in x", None), Difference("b", "values differ", 1.0)]
    assert lines(capsys, Comparison(0, found, []), most=1)[1:] == [
        "2 differ:", "  b: values differ, by up to 1", "  … and 1 more: --all lists them"
    ]  # fmt: skip


@pytest.mark.parametrize(("most", "listed"), [(20, 20), (25, 25), (None, 25)])
def test_many_differences_are_cut_short_unless_all_are_asked_for(capsys, most, listed):
    found = [Difference(f"layer {i}", "values differ", 1.0) for i in range(25)]
    said = lines(capsys, Comparison(0, found, []), most)
    assert said[1] == "25 differ:"
    assert sum("values differ" in line for line in said) == listed
    assert ("  … and 5 more: --all lists them" in said) == (listed == 20)


def test_as_json_it_holds_numbers_that_json_has():
    found = [
        Difference("a", "values differ", 0.25),
        Difference("b", "values differ", NAN),
        Difference("c", "values differ", float("inf")),
        Difference("d", "missing in b"),
    ]

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    said = json.loads(json_of(Comparison(5, found, ["copy"])), parse_constant=refuse)
    assert (said["equal"], said["absent_copies"]) == (5, ["copy"])
    assert [difference["largest"] for difference in said["differences"]] == [
        0.25, "nan", "inf", None,
    ]  # fmt: skip
