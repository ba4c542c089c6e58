"""`dsv3 doctor` names what is there, and what each missing thing costs."""

import io

from rich.console import Console

from dsv3_plugin.launch import doctor


def test_it_knows_this_machine():
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["megatron-core"].found == "0.19.2"
    assert found["torch"].found
    assert found.keys() >= {"Python", "GPUs", "Transformer Engine", "DeepEP", "Apex", "Slurm"}


def test_every_missing_thing_has_its_cost():
    assert all(finding.cost for finding in doctor.examine() if finding.found is None)


def test_the_report_shows_costs_of_missing_things_alone():
    text = io.StringIO()
    findings = [
        doctor.Finding("there", "1.0", "not shown"),
        doctor.Finding("missing", None, "costs [this]"),
    ]
    doctor.report(findings, Console(file=text, width=100))
    lines = text.getvalue().splitlines()
    assert lines[1].split() == ["there", "1.0"]
    assert lines[2].split() == ["missing", "no", "costs", "[this]"]
