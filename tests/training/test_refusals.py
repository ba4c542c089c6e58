"""What a user can get wrong: one sentence, exit code 2, nothing written, nobody's traceback."""

import shutil
import sys

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch.supervise import refuse_missing_gpus, train
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.load import load_recipe
from tests.small_runs import Command


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("parallel.expert=3", "parallel.expert 3 does not divide the 2 ranks of"),
        (
            "parallel.procesess=2",
            "unknown key 'parallel.procesess' (nearest: 'parallel.processes')",
        ),
        ("training.steps=many", "'training.steps' is 'many'; it must be a valid integer"),
        ("parallel.context=3", "2 processes do not divide by"),
        ("recompute=[moe_act]", "recompute: moe_act needs backend: transformer_engine"),
        ("training.seed=2147483648", "'training.seed' is 2147483648; it must be less than"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_happens(recipe, tmp_path, override, sentence):
    with pytest.raises(UserError) as refusal:
        train(str(recipe), [f"directory={tmp_path}/run", override])
    assert sentence in str(refusal.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.corpus={}/nowhere", "corpus {}/nowhere does not exist"),
        ("data.corpus={}/empty", "the corpus is empty"),
        ("data.tokenizer.vocab_size=600", "tokenizer bpe:600 has 600 tokens"),
        ("megatron_args.no-such-flag=1", "Megatron refuses these settings: unrecognized"),
    ],
    ids=["missing corpus", "empty corpus", "large tokenizer", "unknown flag"],
)
def test_a_sentence_from_a_rank_reaches_the_user_and_nothing_is_left(
    recipe, tmp_path, override, sentence
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "nothing.txt").write_text("")
    place = f"directory={tmp_path}/runs/run"
    ended = Command.forked("train", recipe, place, override.format(tmp_path)).end()
    assert ended.code == 2
    assert ended.output.splitlines()[-1].startswith(f"dsv3: {sentence.format(tmp_path)}")
    assert "Traceback" not in ended.output
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


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
def test_more_gpus_than_there_are_is_refused_before_ranks_start(recipe, gpus):
    machine = Machine(gpus, transformer_engine=False)
    wanted = load_recipe(recipe, ["host=gpu"])
    advice = (
        "dsv3 launch RECIPE --cluster FILE --dry-run says here .* "
        "What runs without a GPU is small, such as the recipe pretrain/tiny"
    )
    sentence = f"takes 2 GPUs and this machine has {gpus}: .*{advice}"
    with pytest.raises(UserError, match=sentence):
        refuse_missing_gpus(wanted, machine)
    refuse_missing_gpus(load_recipe(recipe, ["host=cpu"]), machine)
    refuse_missing_gpus(load_recipe("pretrain/tiny"), machine)


def test_what_auto_finds_on_the_machine_is_held_to_the_rules(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Machine, "here", lambda: Machine(gpus=0, transformer_engine=True))
    auto = ["backend=auto", "host=auto", "recompute=[moe_act]", f"directory={tmp_path}/run"]
    with pytest.raises(UserError, match=r"moe_act needs .* finds local on this machine"):
        train(str(recipe), auto)
    assert not (tmp_path / "run").exists()


def test_tensor_parallel_ranks_train(trained, tmp_path):
    ended = Command.forked(
        "train", trained.recipe, f"directory={tmp_path}/run", f"data.path={trained.data}",
        "parallel.tensor=2", "training.steps=1", "training.eval_interval=null",
    ).end()  # fmt: skip
    assert ended.code == 0, ended.output


def test_a_run_that_megatron_refuses_keeps_its_recipes(trained, tmp_path):
    copied = shutil.copytree(trained.folder, tmp_path / "run")
    kept = (p for p in copied.rglob("*.*") if p.is_file() and p.parent.name != "logs")
    before = {path: path.read_bytes() for path in kept if path.name != ".lock"}
    more = ["training.steps=20", "megatron_args.no-such-flag=1"]
    ended = Command.forked("train", trained.recipe, f"directory={copied}", *more).end()
    assert ended.code == 2
    assert "unrecognized arguments: --no-such-flag" in ended.output
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--num-layers", "many"], "argument --num-layers: invalid int value: 'many'"),
    ],
)
def test_what_upstreams_parser_refuses_is_a_sentence(monkeypatch, capsys, arguments, sentence):
    from dsv3_plugin.training.upstream_arguments import parse

    monkeypatch.setattr(sys, "argv", ["of", "the process"])
    with pytest.raises(UserError, match="Megatron refuses these settings") as refusal:
        parse(arguments)
    assert sentence in str(refusal.value)
    assert sys.argv == ["of", "the process"]


def test_a_run_folder_that_cannot_be_written_is_refused(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .* choose another with directory=PATH"):
        train(str(recipe), [f"directory={tmp_path}/file/run"])
