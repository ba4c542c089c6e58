"""What `dsv3 verify` prints of many differences."""

import pytest

from dsv3_plugin.checkpoint.conversion.verify import Comparison, Difference
from dsv3_plugin.cli.compare import print_comparison

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


@pytest.mark.parametrize(("most", "listed"), [(20, 20), (25, 25), (None, 25)])
def test_many_differences_are_cut_short_unless_all_are_asked_for(capsys, most, listed):
    found = [Difference(f"layer {i}", "values differ", 1.0) for i in range(25)]
    said = lines(capsys, Comparison(0, found, []), most)
    assert said[1] == "25 differ:"
    assert sum("values differ" in line for line in said) == listed
    assert ("  … and 5 more" in said) == (listed == 20)
