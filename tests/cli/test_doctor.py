"""The findings as a table."""

import io
import json

import pytest

from dsv3_plugin.cli.doctor import print_findings
from dsv3_plugin.launch import doctor, node_check
from dsv3_plugin.machine import Machine
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


def test_a_node_that_is_well_is_so_in_a_sentence(dsv3, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    said = dsv3("doctor", "--node", "--cluster", "cpu")
    assert (said.code, said.err) == (0, "")
    assert said.out == f"Node n7 is well: no GPU, the clock, {tmp_path}.\n"
    found = json.loads(dsv3("doctor", "--node", "--cluster", "cpu", "--json").out)
    assert (found["name"], found["problems"]) == ("n7", [])
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--node", "--cluster", "h800"), "node n7 is not well: 0 GPUs, of 8 that the cluster's"),
        (("--node", "--cluster", "nowhere"), "nowhere"),
        (("--cluster", "h800"), "goes with --node"),
    ],
)
def test_what_is_wrong_is_a_sentence(dsv3, monkeypatch, words, sentence):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setattr(node_check.Machine, "here", lambda: Machine(0, False))
    said = dsv3("doctor", *words)
    assert (said.code, said.out) == (2, "")
    assert sentence in said.err
