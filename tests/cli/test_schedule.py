"""`dsv3 schedule` from the command line."""

import json

import pytest
from typer.testing import CliRunner

from dsv3_plugin.cli.command import app
from dsv3_plugin.cli.schedule_options import parse_costs, parse_numbers
from dsv3_plugin.errors import UserError
from dsv3_plugin.report.plan.words import TIME
from dsv3_plugin.schedules.actions import csv_text
from dsv3_plugin.schedules.csv_file import read_csv
from dsv3_plugin.schedules.dualpipe_v import dualpipe_v


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["schedule", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        CliRunner().invoke(app, ["schedule", *arguments], catch_exceptions=False)
    return str(error.value)


EIGHT = ("--pp", "8", "--micro-batches", "20")
FULL = "pretrain/deepseek-v3"


@pytest.mark.parametrize(
    ("name", "makespan"),
    [
        ("1f1b", 81),
        ("interleaved", 70.5),
        ("zb1p", 67),
        ("zbv", 63.5),
        ("dualpipe", 59),
        ("dualpipe_v", 59.5),
    ],
)
def test_every_name_answers_in_json(name, makespan):
    answer = json.loads(run(name, *EIGHT, "--json"))
    assert answer["makespan"] == makespan
    assert answer["schedule"].startswith(name)
    assert (answer["pp"], answer["micro_batches"]) == (8, 20)


def test_megatrons_overlapped_interleaving():
    answer = json.loads(run("interleaved", *EIGHT, "--vp", "4", "--overlap", "--json"))
    assert (answer["makespan"], answer["stages"]) == (59.125, 32)


def test_words_tell_the_same():
    out = run("dualpipe_v", *EIGHT)
    assert "8 ranks, 20 micro-batches, 16 stages" in out
    assert "makespan 59.5, idle 7.72 %, peak activations 8.5" in out


def test_costs_change_times():
    costs = "F=1,I=1,W=1,FB=3,comm=0.5"
    assert (
        json.loads(run("1f1b", "--pp", "2", "--micro-batches", "1", "--cost", costs, "--json"))[
            "makespan"
        ]
        == 7.0
    )


SIXTEEN = ("--pp", "16", "--micro-batches", "60")


@pytest.mark.parametrize(("links", "makespan"), [("nccl", 169.5), ("nccl-one", 187.0)])
def test_messages_may_queue(links, makespan):
    answer = json.loads(run("dualpipe_v", *SIXTEEN, "--links", links, "--json"))
    assert (answer["makespan"], answer["ideal_makespan"]) == (makespan, 169.5)
    assert answer["links"] == links


def test_what_queueing_costs_is_told_and_drawn(tmp_path):
    picture = tmp_path / "queued.svg"
    out = run("dualpipe_v", *SIXTEEN, "--links", "nccl-one", "--svg", str(picture))
    assert "makespan 187" in out
    assert out.endswith("links nccl-one: 10.32 % longer than the 169.5 of ideal links\n")
    assert "187" in picture.read_text()
    assert "links" not in run("dualpipe_v", *EIGHT)
    effort = ("--pp", "4", "--micro-batches", "5", "--effort", "0.01")
    found = json.loads(run("search", *effort, "--links", "nccl", "--json"))
    assert found["makespan"] == pytest.approx(found["ideal_makespan"])


def test_a_file_travels_both_ways(tmp_path):
    path = tmp_path / "mine.csv"
    run("dualpipe_v", *EIGHT, "--csv", str(path))
    assert path.read_text() == csv_text(dualpipe_v(8, 20).rows)
    assert json.loads(run("--from-csv", str(path), "--json"))["makespan"] == 59.5
    assert "--pp 8, not 4" in refused("--from-csv", str(path), "--pp", "4")
    path.write_text(path.read_text().replace("0F3,", ",", 1))
    assert "slot" in refused("--from-csv", str(path))


def test_search_reports_its_bound(tmp_path):
    picture = tmp_path / "found.svg"
    answer = json.loads(
        run(
            *("search", "--pp", "4", "--micro-batches", "5", "--effort", "0.01", "--json"),
            *("--activations", "4", "--svg", str(picture)),
        )
    )
    assert answer["makespan"] >= answer["lower_bound"]
    assert answer["distance"] == pytest.approx(answer["makespan"] / answer["lower_bound"] - 1)
    assert max(answer["peak_activations"]) <= 4
    assert picture.exists()
    words = run("search", "--pp", "4", "--micro-batches", "5", "--effort", "0.01")
    assert "no schedule can be shorter than" in words


def test_stages_of_a_model_and_by_hand():
    sixteen = ("dualpipe_v", "--pp", "16", "--micro-batches", "60", "--json")
    even = json.loads(run(*sixteen))["makespan"]
    model = json.loads(run(*sixteen, "--model", "deepseek-v3"))["makespan"]
    moved = json.loads(run(*sixteen, "--model", "deepseek-v3", "--layers", "0,2*14,3,2*15,0"))[
        "makespan"
    ]
    by_hand = json.loads(run(*sixteen, "--stage-costs", "1,2*30,4"))["makespan"]
    assert even == 169.5
    assert even < moved < model
    assert even < by_hand
    both = ("dualpipe", "--pp", "4", "--micro-batches", "8", "--stage-costs", "1,1,1,2", "--json")
    assert len(json.loads(run(*both))["idle_per_rank"]) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dualpipe", "--pp", "7", "--micro-batches", "20"), "even number of ranks"),
        (("dualpipe_v", "--pp", "8", "--micro-batches", "12"), "at least 2 x P = 16"),
        (("zigzag", *EIGHT), "no schedule 'zigzag'; there are 1f1b, "),
        ((), "name a schedule (1f1b, "),
        (("2f2b",), "no schedule '2f2b'"),
        (("zbv", "--pp", "8"), "needs its --micro-batches"),
        (("zbv", "--pp", "0", "--micro-batches", "3"), "--pp must be at least 1"),
        (("1f1b", "--pp", "8", "--micro-batches", "1000000000"), "more than a schedule may have"),
        (
            ("interleaved", "--pp", "8", "--micro-batches", "16", "--vp", "1000000000"),
            "16 micro-batches through 8,000,000,000 stages are more",
        ),
        (
            ("search", "--pp", "8", "--micro-batches", "16", "--vp", "1000000000"),
            "more than a schedule may have",
        ),
        (
            ("1f1b", "--pp", "4", "--micro-batches", "8", "--stage-costs", "1*1000000000"),
            "--stage-costs takes 262,144 stages at most",
        ),
        (("zbv", *EIGHT, "--vp", "2"), "belong to interleaved"),
        (("zbv", *EIGHT, "--cost", "F"), "needs a number"),
        (("zbv", *EIGHT, "--cost", "G=1"), "--cost knows no 'G'"),
        (("zbv", *EIGHT, "--stage-costs", "1,2"), "gives 2 stages, but the schedule has 16"),
        (("zbv", *EIGHT, "--layers", "1*16"), "name the model"),
        (("zbv", *EIGHT, "--seq-length", "1024"), "name the model"),
        (("zbv", *EIGHT, "--csv", "/no/such/folder/x.csv"), "cannot write"),
        (("zbv", "--from-csv", "x.csv"), "not both"),
        (("--from-csv", "no-such.csv"), "cannot read the schedule"),
        (("search", *EIGHT, "--activations", "0.1"), "more than the limit"),
        (("search", *EIGHT, "--activations", "nan"), "--activations must be a number from 0 up"),
        (("search", *EIGHT, "--effort", "inf"), "--effort must be a number from 0 up"),
        (("search", *EIGHT, "--effort", "-1"), "--effort must be a number from 0 up"),
        (("search", *EIGHT, "--overlap"), "--overlap belongs to interleaved"),
        (("zbv", *EIGHT, "--activations", "4"), "--activations belongs to search"),
        (("zbv", *EIGHT, "--effort", "1"), "--effort belongs to search"),
        (("zbv", *EIGHT, "--seed", "0"), "--seed belongs to search"),
        (("zbv", *EIGHT, "--cost", "comm=inf"), "--cost comm needs a number, not 'inf'"),
        (("zbv", *EIGHT, "--cost", "F=nan"), "--cost F needs a number, not 'nan'"),
        (("zbv", *EIGHT, "--stage-costs", "inf,1*15"), "--stage-costs takes numbers"),
        (("zbv", *EIGHT, "--stage-costs", "-1,1*15"), "takes no negative numbers"),
        (("zbv", *EIGHT, "--model", "tiny", "--layers", "0.5,1*15"), "whole numbers of layers"),
        (("zbv", *EIGHT, "--model", "tiny", "--layers", "-1,1*15"), "takes no negative numbers"),
        (("zbv", *EIGHT, "--model", "tiny", "--stage-costs", "1*16"), "give one of them"),
        (("zbv", *EIGHT, "--png", "v.svg"), "--png writes .png files; v.svg does not end so"),
        (("zbv", *EIGHT, "--draw", "--json"), "--json prints one object: name one"),
        (("zbv", *EIGHT, "--svg", "v.png"), "--svg writes .svg files; v.png does not end so"),
    ],
)
def test_bad_requests_get_a_sentence(arguments, words):
    assert words in refused(*arguments)


def test_a_file_from_a_spreadsheet_is_read(tmp_path):
    path = tmp_path / "mine.csv"
    text = csv_text(dualpipe_v(2, 4).rows).replace("\n", "\r\n")
    path.write_bytes(("\ufeff" + text + "\r\n \r\n").encode())
    assert json.loads(run("--from-csv", str(path), "--json"))["pp"] == 2
    assert "--vp and --overlap belong to interleaved" in refused(
        "--from-csv", str(path), "--vp", "2"
    )


def test_numbers_and_costs_are_parsed():
    assert parse_numbers("--layers", "1,2*3,0.5") == [1, 2, 2, 2, 0.5]
    assert parse_costs("F=2,I=2,W=2").pair == 5
    assert parse_costs("").pair == 2.5
    with pytest.raises(UserError, match="--layers takes numbers"):
        parse_numbers("--layers", "1,x")


def test_nothing_is_printed_where_a_file_cannot_be_written(tmp_path):
    place = str(tmp_path / "nowhere" / "a.csv")
    said = CliRunner().invoke(
        app, ["schedule", "1f1b", "--pp", "2", "--micro-batches", "2", "--csv", place]
    )
    assert isinstance(said.exception, UserError)
    assert said.stdout == ""


def test_a_schedule_that_is_nearly_right_is_named():
    said = CliRunner().invoke(app, ["schedule", "dualpip", "--pp", "2", "--micro-batches", "4"])
    assert "no schedule 'dualpip' (nearest: 'dualpipe');" in str(said.exception)


@pytest.mark.parametrize(
    "text", ["0F" + "9" * 5000, "x" * 200_000, '"0F0', "0F999999999,0B999999999", "\0"]
)
def test_a_file_that_is_no_schedule_is_refused(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError):
        read_csv(path)


def test_a_recipe_is_timed_as_its_plan_does():
    """Against the plan of the same recipe, which simulates shorter schedules: within 0.5 %."""
    said = json.loads(run(FULL, "--json"))
    planned = json.loads(
        CliRunner().invoke(app, ["plan", FULL, "--json"], catch_exceptions=False).stdout
    )["phases"][-1]
    assert (said["schedule"], said["pp"], said["micro_batches"]) == ("dualpipe_v", 16, 120)
    assert said["batch"] == planned["batch"]
    stages = planned["stages"]
    assert said["busy_per_rank"] == pytest.approx([s["busy_seconds"] for s in stages], rel=5e-3)
    assert said["memory_bytes"] == [max(s["moments"].values()) for s in stages]
    parts = planned["time_by_part"]
    after = sum(parts.get(part, 0.0) for part in ("data_parallel", "optimizer"))
    within = planned["step_seconds"] - parts["saving"] - parts["evaluation"] - after
    assert said["makespan"] == pytest.approx(within, rel=5e-3)
    # What the slowest has beyond the mean of ranks, part by part, is what makes it the slowest.
    busy, rank = said["busy_per_rank"], said["slowest_rank"]
    beyond = busy[rank] - sum(busy) / len(busy)
    assert sum(said["beyond_mean"].values()) == pytest.approx(beyond, rel=1e-6)


def test_a_recipe_is_told_in_milliseconds_and_gigabytes_and_its_slowest_rank_named():
    words = (FULL, "pipeline.schedule=1f1b_v", "--cluster", "h100", "--micro-batches", "40")
    out = run(*words)
    said = json.loads(run(*words, "--json"))
    assert "deepseek-v3 on h100: 1f1b_v, ranks: 16, micro-batches: 40 (batch 5,120)" in out
    assert f"makespan {1000 * said['makespan']:,.0f} ms" in out
    assert f"{max(said['memory_bytes']) / 1e9:.1f} GB on the fullest rank of 85.0" in out
    rank = said["slowest_rank"]
    assert said["busy_per_rank"][rank] == max(said["busy_per_rank"])
    assert f"\nrank {rank} (" in out
    most, next_, *_, least = sorted(said["beyond_mean"].items(), key=lambda part: -part[1])
    why = out.partition("is the slowest, ")[2].partition(": against the mean of ranks ")[2]
    more, _, less = why.partition(" more, ")
    assert more == " and ".join(
        f"{1000 * time:.3g} ms of {TIME[part]}" for part, time in (most, next_)
    )
    assert less == f"{-1000 * least[1]:.3g} ms of {TIME[least[0]]} less\n"
    queued = json.loads(run(*words, "--links", "nccl", "--json"))
    assert queued["ideal_makespan"] == said["makespan"] <= queued["makespan"]


def test_any_schedule_is_drawn_in_lines():
    out = run("dualpipe_v", *EIGHT, "--draw").splitlines()
    assert [line.split()[0] for line in out[-9:-1]] == [str(rank) for rank in range(8)]
    assert "F forward" in out[-1]


def test_the_slowest_rank_is_named_with_its_stage():
    assert "all ranks compute as long: 60 of 81" in run("1f1b", *EIGHT)
    out = run("1f1b", "--pp", "3", "--micro-batches", "6", "--stage-costs", "1,4,1")
    # 6 micro-batches of 3 passes, at 4 of 6 parts of 3 devices' work.
    assert "rank 1 is the slowest: it computes for 36" in out
    assert "36 of it for stage 1" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((FULL, "--pp", "8"), "--pp goes with the name of a schedule"),
        ((FULL, "--effort", "1"), "--effort goes with the name of a schedule"),
        ((FULL, "--micro-batches", "0"), "--micro-batches must be at least 1"),
        (
            (FULL, "curves.batch_size=15360", "pipeline.ramp_schedule=null", "--micro-batches=8"),
            "at least 2 x P",
        ),
        (("nowhere.yaml",), "nowhere.yaml: no such recipe"),
        (("zbv", "training.steps=1", *EIGHT), "training.steps=1 goes with a recipe"),
        (("zbv", "--cluster", "h100", *EIGHT), "--cluster goes with a recipe"),
    ],
)
def test_what_does_not_go_with_a_recipe_is_refused(words, said):
    assert said in refused(*words)
