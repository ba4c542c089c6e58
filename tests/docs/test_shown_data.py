"""YAML and JSON that pages show: each block is read by what reads such a file.

Those that other tests take from their pages are named here, with the test.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from dsv3_plugin.data.chat.conversation import conversation_of
from dsv3_plugin.recipe.load import load_recipe
from dsv3_plugin.rollouts.prompts import RewardNames, prompt_of
from tests.docs.pages import PAGES, ROOT

REWARDS = RewardNames(known=("accuracy", "code"), of_all=("accuracy",))
HARNESS = {
    "include", "dataset_path", "dataset_name", "dataset_kwargs", "training_split",
    "validation_split",
}  # fmt: skip
"""What lm-evaluation-harness calls such keys of a task; test_harness writes them so."""

Reads = Callable[[str, Path], object]


def recipe(base: str, *overrides: str) -> Reads:
    """Reads a block as a recipe; as what is added to another, unless it names its own."""

    def read(text: str, folder: Path) -> None:
        shown = yaml.safe_load(text)
        path = folder / "shown.yaml"
        path.write_text(yaml.safe_dump({"base": base} | shown), encoding="utf-8")
        read = load_recipe(path, overrides).model_dump(mode="json", by_alias=True)
        without = load_recipe(base, overrides).model_dump(mode="json", by_alias=True)
        assert read != without or shown.keys() <= {"pipeline", "dispatch"}  # as it has them

    return read


def rows(read: Callable[[object, str], object]) -> Reads:
    """Reads a block as lines of JSON."""

    def each(text: str, folder: Path) -> None:
        for line in text.splitlines():
            assert read(json.loads(line), "a row")

    return each


def task(text: str, folder: Path) -> None:
    assert yaml.safe_load(text).keys() == HARNESS


prompts = rows(lambda row, where: prompt_of(row, where, REWARDS))
conversations = rows(conversation_of)

READ: dict[str, Sequence[Reads | str]] = {
    "docs/adding-a-model.md": ["tests/docs/test_adding_a_model.py"],
    "docs/adding-a-stage.md": ["tests/stages/test_adding_a_stage.py"],
    "docs/dispatch.md": [recipe("pretrain/deepseek-v3")],
    "docs/distillation.md": [prompts, conversations, recipe("sft/tiny")],
    "docs/generation.md": [task],
    "docs/launch.md": ["tests/docs/test_lines_to_launch.py"],
    "docs/older-weights.md": [
        recipe("rl/tiny"),
        # Its answers are longer than the small model has positions.
        recipe("rl/tiny", "data.seq_length=33000", "model.max_position_embeddings=33000"),
    ],
    "docs/planner.md": ["tests/docs/test_lines_about_a_run.py"],
    "docs/recipes.md": ["tests/recipe/test_reference.py"],
    "docs/rl.md": [
        recipe("pretrain/tiny"),
        prompts,
        recipe("rl/tiny"),
        recipe("rl/tiny"),
    ],
    "docs/schedules.md": [recipe("pretrain/deepseek-v3"), recipe("pretrain/deepseek-v3")],
    "docs/stages.md": [recipe("pretrain/tiny"), conversations],
    "docs/zero-to-256.md": ["tests/docs/test_zero_to_256.py"],
}
"""What reads each block of a page, in their order; or the test that does."""

SHOWN = {page.name: blocks for page in PAGES if (blocks := page.blocks("yaml", "json"))}


def test_every_block_is_read():
    assert {page: len(blocks) for page, blocks in SHOWN.items()} == {
        page: len(read) for page, read in READ.items()
    }


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, number) for page, blocks in SHOWN.items() for number in range(len(blocks))],
)
def test_a_block_is_what_it_seems(page: str, number: int, tmp_path: Path) -> None:
    read = READ[page][number]
    if isinstance(read, str):
        source = (ROOT / read).read_text(encoding="utf-8")
        assert Path(page).name in source or "PAGE" in source
    else:
        read(SHOWN[page][number], tmp_path)
