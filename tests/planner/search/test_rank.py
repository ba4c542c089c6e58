"""The search for a layout of a whole run: what it finds trains as it is, and nothing beside it is
shorter."""

from dataclasses import replace

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.make import make_plan
from dsv3_plugin.planner.search.begin import sizes_that_divide
from dsv3_plugin.planner.search.candidate import Choice
from dsv3_plugin.planner.search.estimate import Estimates
from dsv3_plugin.planner.search.neighbours import neighbours
from dsv3_plugin.planner.search.rank import rank
from dsv3_plugin.planner.search.space import choices, recomputed
from dsv3_plugin.planner.search.weigh import Scales
from dsv3_plugin.planner.search.write import write_recipe
from dsv3_plugin.planner.setting import Setting
from dsv3_plugin.recipe.load import changed, load_recipe
from tests.planner.settings import GPUS, LAPTOP

LITE = [
    "model=deepseek-v2-lite",
    "model.max_position_embeddings=4096",
    "parallel={processes: 64, pipeline: 2, expert: 8}",
    "pipeline.layout=balanced",
    "curves={batch_size: 1024, router_bias_speed: 0}",
]
H100 = load_cluster("h100")


@pytest.fixture(scope="module")
def lite():
    """DeepSeek-V2-Lite on 64 devices."""
    return load_recipe("pretrain/deepseek-v3", LITE, GPUS)


@pytest.fixture(scope="module")
def ranking(lite):
    return rank(lite, H100, GPUS)


def test_the_best_comes_first_and_fits(ranking, lite):
    steps = [candidate.step_seconds for candidate in ranking.candidates]
    assert steps == sorted(steps)
    assert all(candidate.fits for candidate in ranking.candidates)
    assert ranking.best.step_seconds < ranking.given.step_seconds
    assert ranking.considered > 1000
    for candidate in ranking.candidates:
        assert candidate.memory_bytes <= H100.memory_bytes
        assert Choice.of(candidate.recipe) == candidate.choice
        for kept in ("model", "data", "curve_specs", "precision", "optimizer"):
            assert getattr(candidate.recipe, kept) == getattr(lite, kept)


def test_what_is_weighed_is_what_a_plan_says(ranking):
    for candidate in ranking.candidates[:2]:
        plan = make_plan(candidate.recipe, H100, GPUS)
        parts = plan.phases[-1].time_by_part
        besides = parts.get("saving", 0.0) + parts.get("evaluation", 0.0)
        assert plan.phases[-1].step_seconds - besides == pytest.approx(candidate.step_seconds)
        assert plan.phases[-1].fullest.memory_total == candidate.memory_bytes
        assert plan.limit.fits


def test_nothing_beside_the_best_is_shorter(ranking, lite):
    scales = Scales(lite, H100, GPUS, 1.0)
    best = ranking.best
    for difference in (
        {"micro_batch": best.choice.micro_batch * 2},
        {"pipeline": best.choice.pipeline * 2},
        {"recompute": recomputed(lite, GPUS)[1]},
    ):
        try:
            other = scales.weigh(replace(best.choice, **difference))
        except UserError:
            continue
        assert not other.fits or other.step_seconds > best.step_seconds * 0.999


def test_every_choice_has_its_sentence_and_every_loser_its_reason(ranking):
    text = "\n".join(ranking.best.reasons)
    for what in ("tensor 1: ", "pipeline ", "expert ", "micro-batch ", "schedule ", "recompute ["):
        assert what in text
    for sentence in ranking.best.reasons:
        assert any(word in sentence for word in ("longer", "fit", "cannot be", "as long"))
    for loser in ranking.candidates[1:]:
        (sentence,) = loser.reasons
        assert " % longer: " in sentence
        assert " s for " in sentence


def test_what_is_written_trains_as_it_is(ranking, tmp_path):
    """It builds on what was given, and says no more than what is changed."""
    file = tmp_path / "found.yaml"
    write_recipe(ranking.best, file, "pretrain/deepseek-v3", LITE, "h100")
    read = load_recipe(file, machine=GPUS)
    same = read.model_copy(update={"name": "deepseek-v3", "directory": "runs/deepseek-v3"})
    assert same == ranking.best.recipe.model_copy(update={"cluster": "h100"})
    text = file.read_text()
    assert "\nbase: pretrain/deepseek-v3\n" in text
    assert "optimizer" not in text.partition("\nbase:")[2]
    # Of a recipe of one's own, with a cluster of one's own: from where the file lies.
    mine, folder = tmp_path / "mine.yaml", tmp_path / "below"
    folder.mkdir()
    mine.write_text("base: pretrain/deepseek-v3\nname: mine\n")
    (tmp_path / "cluster.yaml").write_text("{}\n")
    write_recipe(ranking.best, folder / "f.yaml", str(mine), LITE, str(tmp_path / "cluster.yaml"))
    again = load_recipe(folder / "f.yaml", machine=GPUS)
    assert again.cluster == str(tmp_path / "cluster.yaml")
    assert again.pipeline == ranking.best.recipe.pipeline


def test_estimates_are_near_what_is_weighed(lite):
    """Of schedules and divisions of all kinds; they only choose what is weighed."""
    scales = Scales(lite, H100, GPUS, 1.0)
    setting = Setting.of(lite, H100, GPUS)
    estimates = Estimates(setting, H100, 1024)
    assert estimates.setting(Choice.of(lite)) == setting
    off = []
    for choice in list(choices(lite, H100, GPUS))[::197]:
        step = scales.weigh(choice)
        after = step.time_by_part.get("data_parallel", 0) + step.time_by_part.get("optimizer", 0)
        off.append(abs(estimates.seconds(choice) / (step.step_seconds - after) - 1))
    assert len(off) > 10
    assert sorted(off)[len(off) // 2] < 0.05


def test_what_the_recipe_says_of_the_shared_expert_holds_for_every_way(lite):
    for asked, hides in (("null", True), ("false", False)):
        recipe = changed(lite, [f"dispatch.hide_shared_expert={asked}"])
        estimates = Estimates(Setting.of(recipe, H100, GPUS), H100, 1024)
        two_hop = replace(Choice.of(recipe), dispatcher="two_hop")
        assert estimates.setting(two_hop).hides_shared_expert is hides


def test_what_stands_beside_a_way_is_one_choice_away(ranking, lite):
    scales = Scales(lite, H100, GPUS, 1.0)
    estimates = Estimates(Setting.of(lite, H100, GPUS), H100, 1024)
    levels = recomputed(lite, GPUS)
    for best in (ranking.best.choice, replace(Choice.of(lite), micro_batch=16)):
        beside = list(neighbours(best, scales, estimates, levels))
        assert {one.made.split()[0] for one in beside} >= {"tensor", "pipeline", "schedule"}
        for one in beside:
            assert one.others
            assert all(choice != best for _, choice in one.others)


def test_what_a_machine_or_a_rule_cannot_is_not_proposed():
    tiny = load_recipe("pretrain/tiny", machine=LAPTOP)
    found = rank(tiny, load_cluster("cpu"), LAPTOP)
    for candidate in found.candidates:
        assert candidate.choice.context == 1
        assert "moe_act" not in candidate.choice.recompute
        assert candidate.recipe.host == "cpu"


def test_what_fits_in_no_way_is_a_sentence():
    few = load_recipe(
        "pretrain/deepseek-v3",
        [*LITE, "parallel={processes: 2, pipeline: 2, expert: 1}", "curves.batch_size=8"],
    )
    with pytest.raises(UserError) as caught:
        rank(few, H100, GPUS)
    sentence = str(caught.value)
    assert sentence.startswith("deepseek-v3 fits in no way on 2 devices of 85.0 GB")
    assert " GB are missing on pipeline rank " in sentence
    assert sentence.endswith("or a cluster whose devices hold more (--cluster).")


def test_other_processes_than_a_recipe_was_written_for():
    assert sizes_that_divide("pretrain/deepseek-v3", ()) == ()
    fewer = ("parallel.processes=256",)
    assert sizes_that_divide("pretrain/deepseek-v3", fewer) == ("parallel.expert=16",)
    one = ("parallel.processes=1",)
    assert sizes_that_divide("pretrain/tiny", one) == ("parallel.expert=1",)
    four = ("parallel.processes=4",)
    assert sizes_that_divide("pretrain/tiny", four)[-1] == "training.micro_batch_size=1"
    with pytest.raises(UserError, match=r"unknown key 'parallel\.procesess'"):
        sizes_that_divide("pretrain/tiny", ("parallel.procesess=4",))
