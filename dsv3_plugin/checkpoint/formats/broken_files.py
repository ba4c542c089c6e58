"""Files of weights that are missing, cut short or damaged: all of a folder, not the first."""

from collections.abc import Mapping

from dsv3_plugin.errors import UserError

AGAIN = "download it again"
"""The way out, to end a sentence with."""


class BrokenFiles(UserError):
    """Files of weights are missing, cut short or damaged.

    The sentence is that of the first, and says how many there are besides.

    Attributes:
        files: what is wrong with each, a sentence, by its name in the folder.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = dict(files)
        first, *others = self.files.values()
        more = f"{len(others)} more are missing or damaged, too; dsv3 inspect lists all"
        super().__init__(f"{first.removesuffix('.')} ({more})." if others else first)
