"""Lines of the pages that take long: searches, rehearsals, training one stage after the other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rehearsal.te.installed import te_python
from tests.conftest import Said
from tests.docs.pages import PAGES, ROOT, Page
from tests.small_runs import Command, records, write_recipe

pytestmark = pytest.mark.long

PAGE = Page(ROOT / "docs" / "zero-to-256.md")
REHEARSALS = ("rehearse pretrain/tiny", "rehearse pretrain/deepseek-v3-256")
LESS = {"pretrain/deepseek-v3-256": ("--ranks", "240", "curves.batch_size=256")}
"""One rank of many, with multi-token prediction and the head, and as few micro-batches as fill its
pipeline: what it holds is the same."""
SMALL = ("training.steps=1", "training.eval_interval=null", "parallel.processes=1",
         "parallel.expert=1")  # fmt: skip
CHAT = Page(ROOT / "docs" / "stages.md").blocks("json")[0].splitlines()


def is_searched(words: list[str]) -> bool:
    """Whether a line looks for a layout at full size, and writes it."""
    return words[0] == "plan" and "--write" in words and "RECIPE" not in words


def is_rehearsed(words: list[str]) -> bool:
    return " ".join(words) in REHEARSALS


def is_trained(words: list[str]) -> bool:
    """Whether a line trains; `rl/tiny` makes its parents first, and takes minutes."""
    names = ("pretrain/tiny", "extend/tiny-1k", "extend/tiny-4k", "sft/tiny", "RECIPE")
    return words[0] == "train" and words[1] in names and "--dry-run" not in words


def test_searches_find_the_recipe_of_their_page_and_one_for_more_devices(
    dsv3: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, onward = (words for words in PAGE.commands() if is_searched(words))
    said = dsv3(*first)
    assert said.code == 0, said.err
    assert said.out.endswith(": dsv3 launch best.yaml --cluster h100\n")
    found, shipped = (load_recipe(name) for name in ("best.yaml", "pretrain/deepseek-v3-256"))
    assert found.parallel.model_dump(exclude={"timeout_minutes"}) == shipped.parallel.model_dump(
        exclude={"timeout_minutes"}
    )
    assert (found.pipeline.schedule, found.pipeline.layout) == (
        shipped.pipeline.schedule, shipped.pipeline.layout,
    )  # fmt: skip
    assert found.recompute == shipped.recompute
    assert found.training.micro_batch_size == shipped.training.micro_batch_size
    kept = Path("runs/deepseek-v3-256/recipe.yaml")
    kept.parent.mkdir(parents=True)
    kept.write_text("base: pretrain/deepseek-v3-256\n", encoding="utf-8")
    said = dsv3(*("h100" if word == "FILE" else word for word in onward))
    assert said.code == 0, said.err
    assert load_recipe("onward.yaml").parallel.processes == 512
    line = "dsv3 launch onward.yaml --cluster h100 directory=runs/deepseek-v3-256\n"
    assert said.out.endswith(line)


@pytest.mark.parametrize("line", REHEARSALS)
def test_a_rehearsal_says_that_it_would_run(
    line: str, dsv3: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verb, recipe = line.split()
    less = LESS.get(recipe, ())
    if less and (te_python() is None or not any(map(shutil.which, ("cc", "gcc", "clang")))):
        pytest.skip("Transformer Engine's Python or a C compiler is not here")
    said = dsv3(verb, recipe, *less, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["would_run"]


def lines_that_train() -> list[list[str]]:
    """Each once, as a person writes it, every stage behind the one that it begins with."""
    order = ("pretrain/tiny", "extend/tiny-1k", "extend/tiny-4k", "sft/tiny")
    lines = {
        tuple("pretrain/tiny" if word == "RECIPE" else word for word in words)
        for page in PAGES
        if not page.path.name.startswith("adding-")  # each of which has a test of its own
        for words in page.commands()
        if is_trained(words)
    }
    return [list(line) for line in sorted(lines, key=lambda line: (order.index(line[1]), line))]


def test_stages_train_one_after_the_other(tmp_path: Path) -> None:
    """A step each, on texts that are few and one process."""
    write_recipe(tmp_path)  # for its corpus alone
    shutil.copytree(tmp_path / "corpus", tmp_path / "texts")
    (tmp_path / "chat.jsonl").write_text("\n".join(CHAT * 20), encoding="utf-8")
    for words in lines_that_train():
        said = [word for word in words if word != "training.steps=20"]
        small = [*SMALL]
        if said[1] == "sft/tiny":
            small[0] = "training.epochs=1"
        elif said[1] == "pretrain/tiny" and "data.corpus=texts/" not in said:
            small.append("data.corpus=corpus")
        if "data.path=data/" in said:
            small.append("directory=runs/of-texts")
        ended = Command.forked(*said, *small, cwd=tmp_path).end()
        assert ended.code == 0, (said, ended.output)
    for name in ("tiny", "short", "of-texts", "tiny-1k", "tiny-4k", "tiny-sft", "mine"):
        assert any("loss" in line for line in records(tmp_path / "runs" / name)), name
