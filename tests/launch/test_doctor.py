"""`dsv3 doctor` names what is there, and what each missing thing costs."""

from dsv3_plugin.launch import doctor


def test_it_knows_this_machine():
    found = {finding.name: finding for finding in doctor.examine()}
    assert found["megatron-core"].found == "0.19.2"
    assert found["torch"].found
    assert found.keys() >= {"Python", "GPUs", "Transformer Engine", "DeepEP", "Apex", "Slurm"}


def test_every_missing_thing_has_its_cost():
    assert all(finding.cost for finding in doctor.examine() if finding.found is None)
