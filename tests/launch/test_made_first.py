"""What a run needs is made before it, once, and nothing that somebody has named instead."""

import sys
from pathlib import Path

import pytest
import yaml

from dsv3_plugin.errors import UserError
from dsv3_plugin.launch import made_first, parent_run, supervise
from dsv3_plugin.launch.made_first import (
    make_data,
    make_parent,
    missing_parent,
    other_parent,
    refuse_no_parent,
)
from dsv3_plugin.machine import Machine
from dsv3_plugin.recipe.load import load_recipe

NO_GPU = Machine(gpus=0, transformer_engine=False)


RECIPES = {
    "old": {"base": "pretrain/tiny"},
    "middle": {
        "base": "sft/tiny",
        "from": "runs/old",
        "parent_recipe": "old.yaml",
        "training": {"steps": 10, "epochs": None},
        "curves": {"learning_rate": 1e-3},
    },
    "young": {
        "base": "pretrain/tiny",
        "stage": "rl",
        "from": "runs/middle",
        "parent_recipe": "middle.yaml",
        "data": {
            "corpus": "made/asked.jsonl",
            "made_by": f"{__name__}.write",
            "tokenizer": "parent",
            "packing": "prompts",
            "fim_rate": 0.0,
            "held_out": 0.0,
            "held_out_sets": {"apart": "made/apart.jsonl"},
        },
        "rollouts": {"prompts": 4, "max_prompt_tokens": 16, "max_tokens": 16},
        "parallel": {"expert": 1},
    },
}
"""Each begins where the one before ends."""


def write(path: Path) -> None:
    """Makes data."""
    path.write_text(f"{path.name}\n")


@pytest.fixture
def done(monkeypatch, tmp_path) -> set[str]:
    """Names of the recipes whose runs are through, in a folder where nothing else is."""
    names: set[str] = set()
    monkeypatch.chdir(tmp_path)
    for name, recipe in RECIPES.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(made_first, "is_done", lambda recipe: recipe.name in names)
    return names


def made(recipe: str, done: set[str], *overrides: str, code: int = 0, saves: bool = True):
    """The recipes that are trained for one, in their order, and how that ended."""
    trained: list[str] = []

    def train(name: str, words: list[str]) -> int:
        ended = make_parent(name, words, NO_GPU, train)
        if ended is not None:
            return ended
        trained.append(name)
        if saves:
            done.add(load_recipe(name, words).name)
        return code

    return make_parent(recipe, [*overrides], NO_GPU, train), trained


def test_parents_are_trained_oldest_first_and_once(done):
    assert made("young.yaml", done) == (None, ["old.yaml", "middle.yaml"])
    assert made("young.yaml", done) == (None, [])
    done.remove("middle")  # stopped, and gone on with
    assert made("young.yaml", done) == (None, ["middle.yaml"])


def test_a_dry_run_says_all_that_is_trained_before(done, capsys):
    supervise.dry_run("young.yaml", [])
    assert capsys.readouterr().out.startswith(
        "It would train 2 others first, as these lines would, in this order:\n"
        "  dsv3 train old.yaml     into runs/old\n"
        "  dsv3 train middle.yaml  into runs/middle\n"
    )
    done.add("old")
    supervise.dry_run("young.yaml", [])
    said = capsys.readouterr().out
    assert said.startswith("It would train middle.yaml first, into runs/middle.\n")


def test_parents_that_begin_with_each_other_are_refused(done):
    for name, other in (("egg", "hen"), ("hen", "egg"), ("alone", "alone")):
        recipe = {**RECIPES["middle"], "from": f"runs/{other}", "parent_recipe": f"{other}.yaml"}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    for name, way in (("egg", "hen.yaml → egg.yaml"), ("alone", "alone.yaml")):
        said = f"^parent_recipe: what runs/{name} .* itself \\({way}\\), a circle: have one of"
        with pytest.raises(UserError, match=said):
            made(f"{name}.yaml", done)


def test_a_parent_that_somebody_names_is_not_made(done):
    assert made("young.yaml", done, "from=elsewhere") == (None, [])
    assert made("young.yaml", done, "parent_recipe=null") == (None, [])
    assert made("pretrain/tiny", done) == (None, [])


@pytest.mark.parametrize("code", [0, 1, 130])
def test_a_parent_that_is_stopped_ends_the_command(done, code):
    assert made("young.yaml", done, code=code, saves=False) == (code, ["old.yaml"])


def test_why_a_parents_recipe_is_passed_over_is_said(done):
    recipe = load_recipe("young.yaml", ["from=elsewhere"])
    with pytest.raises(UserError) as refused:
        refuse_no_parent(recipe, NO_GPU)
    said = str(refused.value)
    assert said.startswith("from: elsewhere does not exist")
    assert said.endswith("parent_recipe middle.yaml is passed over, as it trains into runs/middle.")
    with pytest.raises(UserError, match=r"^parent_recipe: 'rl/nope' is neither a file nor a"):
        missing_parent(load_recipe("young.yaml", ["parent_recipe=rl/nope"]), NO_GPU)


def test_a_run_that_goes_on_needs_no_parent(done, tmp_path):
    recipe = load_recipe("young.yaml")
    assert missing_parent(recipe, NO_GPU) == "middle.yaml"
    (recipe.checkpoint_folder).mkdir(parents=True)
    (recipe.checkpoint_folder / "latest_checkpointed_iteration.txt").write_text("20")
    assert missing_parent(recipe, NO_GPU) is None


def test_data_are_written_where_they_are_not(done, tmp_path):
    recipe = load_recipe("young.yaml")
    asked, held_out = Path(recipe.data.corpus), Path(recipe.data.held_out_sets["apart"])
    held_out.parent.mkdir(parents=True)
    held_out.write_text("mine\n")
    make_data(recipe)
    assert asked.read_text() == "asked.jsonl\n"
    assert held_out.read_text() == "mine\n"


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            "nowhere.at_all",
            "data.made_by: nowhere.at_all is a function in the Python package nowhere, which is "
            "neither in this folder nor installed: put it there, or name another function",
        ),
        (
            "dsv3_plugin.numbers.nothing",
            "is not there: .*numbers.py has no nothing: write it there",
        ),
        ("dsv3_plugin.nowhere.nothing", "is not there: No module named 'dsv3_plugin.nowhere'"),
        ("nothing", "is no function: write package.module.function"),
        ("../gen.ok", "data.made_by: ../gen.ok is no function: write package.module.function"),
    ],
)
def test_a_function_that_is_not_there_is_said(done, function, sentence):
    with pytest.raises(UserError, match=sentence):
        make_data(load_recipe("young.yaml", [f"data.made_by={function}"]))


def test_all_that_data_are_to_be_prepared_of_and_that_is_missing_is_told_first(
    monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(made_first, "prepare_data", lambda *more: pytest.fail("too early"))
    with pytest.raises(UserError) as error:
        made_first.prepare("pretrain/deepseek-v3-256", [], pytest.fail)
    assert str(error.value) == (
        f"deepseek-v3-256: data.corpus: corpus does not exist in {tmp_path}: put it there, or name "
        f"another; data.tokenizer: tokenizer does not exist in {tmp_path}: put it there, or name "
        "another."
    )


def test_data_are_made_before_they_are_prepared(done, monkeypatch):
    prepared = []
    monkeypatch.setattr(made_first, "prepare_data", lambda name, *more: prepared.append(name))
    made_first.prepare("young.yaml", ["from=elsewhere"], print)
    assert prepared == ["young.yaml"]
    assert Path("made/asked.jsonl").is_file()


def test_prompts_wait_for_a_parent_that_is_not_trained(done, monkeypatch):
    monkeypatch.setattr(made_first, "prepare_data", lambda *more: pytest.fail("too early"))
    said = []
    made_first.prepare("young.yaml", [], said.append)
    assert Path("made/asked.jsonl").is_file()
    assert "runs/middle, which is not trained yet: dsv3 train middle.yaml does so" in said[0]


FUNCTIONS = """
def asked(path):
    path.write_text("mine")

def half(path):
    path.write_text("half")
    raise ValueError("no more questions")

def gone(path):
    raise SystemExit(3)

def without_source(path):
    open("nothing.txt")

def nothing(path):
    pass

def empty(path):
    path.touch()

def folder(path):
    path.mkdir()

def half_a_folder(path):
    path.mkdir()
    (path / "one").write_text("half")
    raise ValueError("no more questions")
"""


def test_a_function_of_this_folder_is_found(done, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    Path("questions_here.py").write_text(FUNCTIONS)
    made_by = ["data.made_by=questions_here.asked"]
    made_first.refuse_missing_maker(load_recipe("young.yaml", made_by))
    make_data(load_recipe("young.yaml", made_by))
    assert Path("made/asked.jsonl").read_text() == "mine"
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ("half", "raised ValueError: no more questions where it was to write made/asked.jsonl"),
        ("gone", "raised SystemExit: 3 where it was to write made/asked.jsonl: mend the function"),
        ("without_source", "raised FileNotFoundError: .*nothing.txt' where it was to write"),
        ("nothing", "has not written made/asked.jsonl, the path that it was given"),
        ("empty", "has written nothing into made/asked.jsonl, the path that it was given"),
        ("folder", "has written nothing into made/asked.jsonl, the path that it was given"),
        ("half_a_folder", "raised ValueError: no more questions where it was to write"),
    ],
)
def test_a_function_that_fails_is_named_and_leaves_no_half_file(done, function, what):
    Path("failing_here.py").write_text(FUNCTIONS)
    recipe = load_recipe("young.yaml", [f"data.made_by=failing_here.{function}"])
    with pytest.raises(UserError, match=what) as caught:
        make_data(recipe)
    assert "failing_here.py, or put the file there" in str(caught.value)
    assert not [*Path("made").iterdir()]


def trained(name: str, *overrides: str, step: int) -> Path:
    """The folder of a recipe's run that was trained so far, with what it keeps of itself."""
    recipe = load_recipe(name, overrides)
    recipe.run_folder.checkpoints.mkdir(parents=True)
    recipe.run_folder.write_recipe(recipe.to_yaml())
    (recipe.checkpoint_folder / "latest_checkpointed_iteration.txt").write_text(f"{step}")
    return recipe.run_folder.root


def test_a_parent_that_was_trained_otherwise_is_begun_with_as_it_is(done, monkeypatch, capsys):
    through = {5: True, 10: False}
    monkeypatch.setattr(parent_run, "is_done", lambda kept: through[kept.total_steps])
    trained("middle.yaml", "training.steps=5", step=5)
    assert made("young.yaml", done) == (None, [])
    said = (
        "runs/middle was trained to its end with another training.steps than middle.yaml says now "
        "(5 there, 10 in the recipe), and is begun with as it is: move it away to have middle.yaml "
        "make another."
    )
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert other_parent(load_recipe("young.yaml"), NO_GPU) == said
    done.add("middle")  # by its own recipe, too: how it was trained is another thing
    assert other_parent(load_recipe("young.yaml"), NO_GPU) == said


def test_a_parent_that_was_stopped_goes_on_by_its_own_recipe_alone(done, monkeypatch):
    done.add("old")
    division = ["checkpoint.interval=2", "training.log_interval=3", "parallel.timeout_minutes=7"]
    trained("middle.yaml", *division, step=3)
    assert made("young.yaml", done) == (None, ["middle.yaml"])
    done.remove("middle")
    trained("old.yaml", "training.seed=7", "optimizer.eps=1e-6", step=3)
    Path("middle.yaml").rename("other.yaml")
    Path("middle.yaml").write_text("base: other.yaml\nname: again\nfrom: runs/old\n")
    done.remove("old")
    with pytest.raises(UserError) as refused:
        made("middle.yaml", done)
    assert str(refused.value) == (
        "runs/old is at step 3 of 240, and was trained with another training.seed and "
        "optimizer.eps than old.yaml says now: finish it with `dsv3 train runs/old/recipe.yaml`, "
        "begin with it as it is by parent_recipe=null, or train another with `dsv3 train old.yaml "
        "directory=PATH` and begin with that by from=PATH."
    )
    assert made("middle.yaml", done, "parent_recipe=null") == (None, [])
