"""What a search found, for people and programs."""

import io
import json
from dataclasses import replace

from dsv3_plugin.planner.cluster import load_cluster
from dsv3_plugin.planner.search.candidate import Candidate, Choice, Ranking
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.report.plan.ranking import ranking_mapping, ranking_tables
from dsv3_plugin.terminal.console import Console

RECIPE = load_recipe("pretrain/deepseek-v3")
CHOICE = Choice.of(RECIPE)


def candidate(**changes: object) -> Candidate:
    made = Candidate(
        choice=CHOICE,
        recipe=RECIPE,
        step_seconds=20.0,
        time_by_part={"gemm": 12.0, "pipeline": 8.0},
        tokens_per_second_per_gpu=1536.0,
        memory_bytes=72 * 10**9,
        memory_rank=3,
        fits=True,
        reasons=("expert 64: 32 takes 3.0 % longer", "layout: equal work"),
    )
    return replace(made, **changes)


def ranking() -> Ranking:
    other = candidate(
        choice=replace(CHOICE, schedule="interleaved", virtual_stages=4, recompute=()),
        step_seconds=22.0,
        reasons=("10 % longer: waiting\x1b[2J for the pipeline 9.0 s for 8.0 s",),
    )
    given = candidate(step_seconds=25.0, memory_bytes=90 * 10**9, fits=False, reasons=())
    return Ranking(load_cluster("h800"), (candidate(), other), given, 2958, 25)


def shown(found: Ranking, width: int = 80) -> str:
    screen = io.StringIO()
    Console(screen, width=width).print(ranking_tables(found))
    return screen.getvalue()


def test_the_best_stands_first_with_its_reasons_and_the_others_with_theirs():
    text = shown(ranking())
    assert "2,958 ways to run it on h800 were looked at, 25 of them simulated" in text
    lines = [line.split() for line in text.splitlines()]
    places = [line for line in lines if line[:1] in (["1"], ["2"], ["given"])]
    assert [line[:9] for line in places if line[1] != "is" and line[1] != "loses"] == [
        ["1", "20.00", "1,536", "72.0", "1", "16", "1", "64", "1"],
        ["2", "22.00", "1,536", "72.0", "1", "16", "1", "64", "1"],
        ["given", "25.00", "1,536", "90.0", "!", "1", "16", "1", "64"],
    ]
    best, lost = text.partition("1 is taken for these reasons")[2].split("2 loses")
    assert [line.strip() for line in best.splitlines() if line.startswith("  ")] == [
        "expert 64: 32 takes 3.0 % longer",
        "layout: equal work",
    ]
    assert "waiting\\x1b[2J for the pipeline" in " ".join(lost.split())
    assert "interleaved ×4, two_hop" in " ".join(text.split())


def test_it_fits_a_terminal():
    assert max(map(len, shown(ranking()).splitlines())) <= 80
    assert "1,536" in shown(ranking(), 60)


def test_json_has_the_keys_of_each_way():
    told = ranking_mapping(ranking())
    assert json.loads(json.dumps(told)) == told
    assert (told["considered"], told["weighed"]) == (2958, 25)
    best, other = told["candidates"]
    assert best["keys"]["parallel.pipeline"] == 16
    assert best["keys"]["pipeline.layout"] == RECIPE.pipeline.layout
    assert other["keys"]["pipeline.virtual_stages"] == 4
    assert best["reasons"][-1] == "layout: equal work"
    assert told["given"]["fits"] is False
    assert ranking_mapping(replace(ranking(), given=None))["given"] is None
