"""How many sequences the conversations of a run fill: counted when its data are built.

A file of the data folder says it, since the steps of a run follow from it, which are known before
anything of the data is read.
"""

from pathlib import Path

from dsv3_plugin.files.json_text import read_plain
from dsv3_plugin.recipe.section import Section

FILE = "epochs.json"


class EpochsCounted(Section):
    """Of the first epochs.

    Attributes:
        made_from: what the numbers depend on: where that is equal, they are.
        sequences: of each of the first epochs; later ones are taken for as long as the last.
        conversations: in these epochs.
        tokens: of those, without padding.
        learned: of these, the ones that count in the loss.
    """

    made_from: str
    sequences: list[int]
    conversations: int
    tokens: int
    learned: int

    def sequences_of(self, number: int) -> int:
        """Of the first so many epochs."""
        more = max(number - len(self.sequences), 0)
        return sum(self.sequences[:number]) + more * self.sequences[-1]


def epochs_counted(folder: Path) -> EpochsCounted | None:
    """What a data folder says, None where it says nothing."""
    try:
        return EpochsCounted.model_validate_json(read_plain(folder / FILE))
    except (OSError, ValueError):
        return None
