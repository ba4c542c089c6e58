"""docs/adding-a-stage.md, done: its files beside a copy of the package, and a run of the stage."""

import re
import shutil
from pathlib import Path

import pytest

import dsv3_plugin
from tests.small_runs import Command, records

PACKAGE = Path(dsv3_plugin.__file__).parent
PAGE = PACKAGE.parent / "docs" / "adding-a-stage.md"


def blocks(language: str) -> list[str]:
    page = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def patched(text: str, diff: str) -> str:
    """`text` with a diff of the page applied, its context found wherever it stands."""
    lines = [line for line in diff.splitlines() if line]
    before = "\n".join(line[1:] for line in lines if line[0] in " -")
    after = "\n".join(line[1:] for line in lines if line[0] in " +")
    flat = re.sub(r"\n\n+", "\n", text)
    assert before in flat, before
    return flat.replace(before, after)


@pytest.fixture(scope="module")
def with_the_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with what the page adds."""
    root = tmp_path_factory.mktemp("copy")
    package = root / "dsv3_plugin"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PACKAGE.parent / "recipes", root / "recipes")
    recipe, stage = blocks("python")
    (package / "recipe" / "continuation.py").write_text(recipe, encoding="utf-8")
    (package / "stages" / "continuation.py").write_text(stage, encoding="utf-8")
    schema = package / "recipe" / "schema.py"
    [diff] = blocks("diff")
    schema.write_text(patched(schema.read_text(encoding="utf-8"), diff), encoding="utf-8")
    return root


@pytest.mark.long
def test_the_stage_of_the_page_trains(with_the_stage: Path, recipe: Path, tmp_path: Path) -> None:
    [written] = blocks("yaml")
    path = recipe.with_name("continuation.yaml")
    path.write_text(written.replace("pretrain/tiny", recipe.name), encoding="utf-8")
    losses = {}
    for prompt in (0.0, 0.5):
        folder = tmp_path / str(prompt)
        ended = Command(
            "train", path, f"directory={folder}", f"data.path={tmp_path}/data", f"prompt={prompt}",
            "training.steps=3", "parallel.processes=1", "parallel.expert=1",
            PYTHONPATH=str(with_the_stage), cwd=tmp_path,
        ).end()  # fmt: skip
        assert ended.code == 0, ended.output
        losses[prompt] = [line["loss"] for line in records(folder) if "loss" in line]
    # The same stage without a prompt is pretraining.
    plain = tmp_path / "plain"
    ended = Command.forked(
        "train", recipe, f"directory={plain}", f"data.path={tmp_path}/data", "training.steps=3",
        "parallel.processes=1", "parallel.expert=1",
    ).end()  # fmt: skip
    assert ended.code == 0, ended.output
    assert losses[0.0] == [line["loss"] for line in records(plain) if "loss" in line]
    assert len(losses[0.5]) == 3
    assert losses[0.5] != losses[0.0]
