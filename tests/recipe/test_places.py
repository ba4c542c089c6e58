"""What a folder stands for, by what is asked for."""

from pathlib import Path

import pytest

from dsv3_plugin.errors import UserError
from dsv3_plugin.files.run_folder import RunFolder
from dsv3_plugin.recipe.places import data_at, run_at, the_run_at, weights_at

FILES = [
    "run/recipe.yaml",
    "run/metrics.jsonl",
    "run/checkpoints/latest_checkpointed_iteration.txt",
    "run/checkpoints/recipe.yaml",
    "run/checkpoints/iter_0000004/.metadata",
    "run/data/manifest.json",
    "young/recipe.yaml",
    "young/checkpoints/recipe.yaml",
    "parted/recipe.yaml",
    "parted/metrics.jsonl",
    "kept/iter_0000004/.metadata",
    "kept/recipe.yaml",
    "tokens/manifest.json",
    "again/recipe.yaml",
    "once more/recipe.yaml",
    "its own/recipe.yaml",
    "launched/launch/recipe.yaml",
    "launched/launch/job.sbatch",
    "imported/release/.metadata",
    "imported/manifest.json",
    "hf/config.json",
    "empty/nothing",
]


@pytest.fixture
def place(tmp_path):
    """Folders of each kind."""
    recipes = {
        "parted": ("parted", "kept", "tokens"),
        "kept": ("parted", "kept", "tokens"),
        "again": ("again", "again/checkpoints", "once more"),
        "once more": ("once more", "once more/checkpoints", "run"),
        "its own": ("its own", "its own/checkpoints", "its own"),
    }
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if path.name == "recipe.yaml":
            said = [tmp_path / one for one in recipes.get(path.parent.name, ())]
            path.write_text(
                "directory: {}\ncheckpoint: {{directory: {}}}\ndata: {{path: {}}}\n".format(*said)
                if said
                else "directory: /where/it/was\n"
            )
    return tmp_path


@pytest.mark.parametrize(
    ("named_so", "weights", "data", "run"),
    [
        ("run", "run/checkpoints", "run/data", "run"),
        ("run/checkpoints", "run/checkpoints", "run/data", "run"),
        ("run/checkpoints/iter_0000004", "run/checkpoints/iter_0000004", "run/data", "run"),
        ("run/data", "run/data", "run/data", None),
        ("young", "young", "young/data", "young"),
        ("young/checkpoints", "young/checkpoints", "young/data", "young"),
        ("parted", "kept", "tokens", "parted"),
        ("kept", "kept", "tokens", "parted"),
        ("kept/iter_0000004", "kept/iter_0000004", "tokens", "parted"),
        ("again", "again", "run/data", "again"),
        ("its own", "its own", "its own", "its own"),
        ("launched/launch", "launched/launch", "launched/launch", None),
        ("imported", "imported", "imported", None),
        ("hf", "hf", "hf", None),
        ("empty", "empty", "empty", None),
        ("nowhere", "nowhere", "nowhere", None),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_folder_stands_for(place, monkeypatch, relative, named_so, weights, data, run):
    monkeypatch.chdir(place)
    before = Path() if relative else place
    assert weights_at(before / named_so).resolve() == place / weights
    assert data_at(before / named_so).resolve() == place / data
    found = run_at(before / named_so)
    assert (found and found.root.resolve()) == (run and place / run)


def test_the_folders_themselves_stand_for_what_they_are_in(place, monkeypatch):
    monkeypatch.chdir(place / "run" / "checkpoints")
    assert run_at(".").root.resolve() == place / "run"
    monkeypatch.chdir(place / "run")
    assert weights_at("").resolve() == place / "run" / "checkpoints"


def test_a_run_that_is_asked_for_is_named(place):
    assert the_run_at(place / "run") == RunFolder(place / "run")
    for name, why in (("empty", "holds no run"), ("nowhere", "does not exist")):
        with pytest.raises(UserError, match=f"{name} {why}: name a run's folder"):
            the_run_at(place / name)


def test_a_run_that_slurm_did_not_take_is_no_riddle(tmp_path):
    run = RunFolder(tmp_path / "tiny")
    run.launch.mkdir(parents=True)
    run.launched_with.write_text("name: tiny\n")
    with pytest.raises(UserError, match=r"Slurm was given no job of it: launch it again"):
        the_run_at(run.root)
