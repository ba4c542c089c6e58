"""`trained_on.json` of a checkpoint folder: which texts and which tokenizer its checkpoints are of.

A run keeps it from its first start; an import, whose training nobody here has seen, has none.
"""

from collections.abc import Mapping
from pathlib import Path

import pydantic

from dsv3_plugin.data.tokenizer_folder import digests
from dsv3_plugin.errors import UserError
from dsv3_plugin.files.atomic import replace_file
from dsv3_plugin.files.json_text import read_plain
from dsv3_plugin.files.links import inside
from dsv3_plugin.recipe.section import Section

TRAINED_ON = "trained_on.json"
TOKENIZER = "tokenizer"
"""The folder of the tokenizer in a checkpoint folder."""


class TrainedOn(Section):
    """What belongs to the checkpoints of a folder, by digests.

    Attributes:
        corpus: of the texts.
        tokenizer: of how text becomes tokens.
        vocabulary: of the tokenizer's files beside the checkpoints, by their names.
    """

    corpus: str
    tokenizer: str
    vocabulary: Mapping[str, str]


def read(folder: Path) -> TrainedOn | None:
    """What the checkpoints of a folder were trained on; None: it does not say.

    Raises:
        UserError: it cannot be read.
    """
    path = inside(folder, TRAINED_ON)
    try:
        return TrainedOn.model_validate_json(read_plain(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, pydantic.ValidationError):
        raise UserError(
            f"{path} cannot be read: restore it, or remove it to go without its checks."
        ) from None


def write(folder: Path, trained_on: TrainedOn) -> None:
    """Keep what the checkpoints of a folder are trained on."""
    replace_file(folder / TRAINED_ON, trained_on.model_dump_json(indent=2).encode() + b"\n")


def refuse_replaced_tokenizer(folder: Path) -> None:
    """Look whether the tokenizer beside checkpoints is the one that they were trained with.

    Raises:
        UserError: it is another, or links lead out of the folder; there may be none.
    """
    present, trained_on = digests(inside(folder, TOKENIZER)), read(folder)
    if trained_on and present and present != trained_on.vocabulary:
        raise UserError(
            f"{folder / TOKENIZER} is not the tokenizer that the checkpoints beside it were "
            f"trained with: put that one back, or remove {folder / TRAINED_ON} if you replaced it "
            "on purpose."
        )
