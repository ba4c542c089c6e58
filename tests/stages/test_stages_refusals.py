"""What a user can get wrong: one sentence, exit code 2, nothing written, nobody's traceback."""

import sys

import pytest
from small_runs import Command

from dsv3_plugin.errors import UserError
from dsv3_plugin.recipe import machine
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.stages.train import refuse_missing_gpus, train


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("parallel.expert=3", "expert 3 does not divide 8 routed experts"),
        ("parallel.procesess=2", "unknown key 'parallel.procesess' (nearest: 'processes')"),
        ("training.steps=many", "'training.steps' is 'many'; it must be a valid integer"),
        ("parallel.context=3", "2 processes do not divide by"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_happens(recipe, tmp_path, override, sentence):
    with pytest.raises(UserError) as refusal:
        train(str(recipe), [f"directory={tmp_path}/run", override])
    assert sentence in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_sentence_from_a_rank_reaches_the_user(recipe, tmp_path):
    ended = Command(
        "train", recipe, f"directory={tmp_path}/run", f"data.corpus={tmp_path}/nowhere"
    ).end()
    assert ended.code == 2
    sentence = ended.output.splitlines()[-1]
    assert sentence.startswith(f"dsv3: corpus {tmp_path}/nowhere does not exist")
    assert "Traceback" not in ended.output
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "logs"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_launcher_with_other_ranks_is_refused_and_one_rank_says_so(recipe, tmp_path, rank):
    ended = Command(
        "train",
        recipe,
        f"directory={tmp_path}/run",
        RANK=str(rank),
        WORLD_SIZE="3",
        LOCAL_RANK=str(rank),
    ).end()
    assert ended.code == 2
    assert (
        ended.output.splitlines()
        == [
            "dsv3: the recipe is for 2 processes and the launcher started 3: start as many, or set "
            "parallel.processes=3."
        ][rank:]
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("gpus", [0, 1])
def test_more_gpus_than_there_are_is_refused_before_ranks_start(recipe, monkeypatch, gpus):
    monkeypatch.setattr(machine, "gpu_count", lambda: gpus)
    wanted = load_recipe(recipe, ["host=gpu"])
    with pytest.raises(UserError, match=f"takes 2 GPUs and this machine has {gpus}"):
        refuse_missing_gpus(wanted)
    refuse_missing_gpus(load_recipe(recipe, ["host=cpu"]))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--num-layers", "many"], "argument --num-layers: invalid int value: 'many'"),
    ],
)
def test_what_upstreams_parser_refuses_is_a_sentence(monkeypatch, capsys, arguments, sentence):
    from dsv3_plugin.stages.pretrain import parse_arguments

    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(UserError, match="Megatron refuses these settings") as refusal:
        parse_arguments(arguments)
    assert sentence in str(refusal.value)


def test_a_run_folder_that_cannot_be_written_is_refused(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .* choose another with directory=PATH"):
        train(str(recipe), [f"directory={tmp_path}/file/run"])
