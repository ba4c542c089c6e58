"""The findings as a table."""

import io
import json

from dsv3_plugin.cli.doctor import print_findings
from dsv3_plugin.launch import doctor
from dsv3_plugin.terminal.console import Console


def test_the_report_shows_costs_of_missing_things_alone():
    text = io.StringIO()
    findings = [
        doctor.Finding("there", "1.0", "not shown"),
        doctor.Finding("missing", None, "costs [this]"),
    ]
    print_findings(findings, Console(file=text, width=100))
    lines = text.getvalue().splitlines()
    assert lines[1].split() == ["there", "1.0"]
    assert lines[2].split() == ["missing", "no", "costs", "[this]"]


def test_as_json_each_thing_by_its_name(dsv3):
    said = json.loads(dsv3("doctor", "--json").out)
    assert said["megatron-core"] == {"found": "0.19.2"}
    for name, found in said.items():
        assert ("without_it" in found) == (found["found"] is None), name
