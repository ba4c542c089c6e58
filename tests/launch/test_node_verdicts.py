"""Which nodes a run starts on, of those that were looked at."""

from dsv3_plugin.launch.node_verdicts import (
    Verdict,
    at_fault,
    choose,
    forget,
    rank_file,
    remember,
    verdict_file,
)


def looked_at(run, shared: tuple[str, ...] = (), **problems: list[str]) -> None:
    for node, found in problems.items():
        remember(run, node, Verdict(tuple(found), shared))


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
    assert choice.left_out == choice.broken == {"n2": ("7 GPUs, of 8",)}
    assert choose(tmp_path, ["n1", "n3"], 1).nodes == ("n1",)


def test_without_a_spare_there_are_none(tmp_path):
    looked_at(tmp_path, n1=[], n2=["its disk is full"])
    assert choose(tmp_path, ["n1", "n2"], 2).nodes == ()


def test_a_node_that_says_nothing_or_nonsense_is_not_well(tmp_path):
    looked_at(tmp_path, n1=[])
    for node, text in (("n2", '{"a": 1}'), ("n4", "["), ("n5", '{"own": 1, "shared": []}')):
        verdict_file(tmp_path, node).write_text(text, encoding="utf-8")
    choice = choose(tmp_path, ["n1", "n2", "n3", "n4", "n5"], 1)
    assert choice.nodes == ("n1",)
    assert choice.left_out.keys() == choice.broken.keys() == {"n2", "n3", "n4", "n5"}
    forget(tmp_path)
    assert choose(tmp_path, ["n1"], 1).nodes == ()


def test_no_node_is_broken_by_what_all_share_and_none_where_none_is_well(tmp_path):
    looked_at(tmp_path, n1=[])
    looked_at(tmp_path, shared=("no room",), n2=[], n3=["its clock is off"])
    choice = choose(tmp_path, ["n1", "n2", "n3"], 2)
    assert choice.left_out == {"n2": ("no room",), "n3": ("its clock is off", "no room")}
    assert choice.broken == {"n3": ("its clock is off",)}
    assert choose(tmp_path, ["n2", "n3"], 2).broken == {}


def test_where_no_rank_began_no_node_is_to_blame(tmp_path):
    assert at_fault(tmp_path, ["n1", "n2"], 2) == {}


def test_the_node_that_others_waited_for_is_at_fault(tmp_path):
    came(tmp_path, "began", n1=2, n2=1)
    assert at_fault(tmp_path, ["n1", "n2"], 2) == {"n2": "1 of its 2 ranks did not begin"}


def test_or_the_one_that_did_not_get_through(tmp_path):
    came(tmp_path, "began", n1=2, n2=2)
    assert at_fault(tmp_path, ["n1", "n2"], 2) == {}
    came(tmp_path, "done", n1=2)
    fault = at_fault(tmp_path, ["n1", "n2"], 2)
    assert fault == {"n2": "2 of its 2 ranks did not get through an all-reduce"}
