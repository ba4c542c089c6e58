"""Which nodes a run starts on, of those that were looked at."""

import json

from dsv3_plugin.launch.node_verdicts import (
    at_fault,
    choose,
    forget,
    rank_file,
    verdict_file,
)


def looked_at(run, **problems) -> None:
    for node, found in problems.items():
        place = verdict_file(run, node)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(found), encoding="utf-8")


def came(run, what: str, **ranks: int) -> None:
    for node, number in ranks.items():
        for local in range(number):
            place = rank_file(run, node, local, what)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()


def test_the_first_that_are_well_run_and_a_spare_takes_a_bad_ones_place(tmp_path):
    looked_at(tmp_path, n1=[], n2=["7 GPUs, of 8"], n3=[])
    choice = choose(tmp_path, ["n1", "n2", "n3"], 2)
    assert choice.nodes == ("n1", "n3")
    assert choice.left_out == {"n2": ["7 GPUs, of 8"]}
    assert choose(tmp_path, ["n1", "n3"], 1).nodes == ("n1",)


def test_without_a_spare_there_are_none(tmp_path):
    looked_at(tmp_path, n1=[], n2=["its disk is full"])
    assert choose(tmp_path, ["n1", "n2"], 2).nodes == ()


def test_a_node_that_says_nothing_or_nonsense_is_not_well(tmp_path):
    looked_at(tmp_path, n1=[], n2={"a": 1})
    verdict_file(tmp_path, "n4").write_text("[", encoding="utf-8")
    choice = choose(tmp_path, ["n1", "n2", "n3", "n4"], 1)
    assert choice.nodes == ("n1",)
    assert choice.left_out.keys() == {"n2", "n3", "n4"}
    forget(tmp_path)
    assert choose(tmp_path, ["n1"], 1).nodes == ()


def test_the_node_that_others_waited_for_is_at_fault(tmp_path):
    came(tmp_path, "began", n1=2, n2=1)
    assert at_fault(tmp_path, ["n1", "n2"], 2) == {"n2": "1 of its 2 ranks did not begin"}


def test_or_the_one_that_did_not_get_through(tmp_path):
    came(tmp_path, "began", n1=2, n2=2)
    assert at_fault(tmp_path, ["n1", "n2"], 2) == {}
    came(tmp_path, "done", n1=2)
    fault = at_fault(tmp_path, ["n1", "n2"], 2)
    assert fault == {"n2": "2 of its 2 ranks did not get through an all-reduce"}
