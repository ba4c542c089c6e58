"""Scripts by the names that Unicode's letters begin with: LATIN SMALL LETTER A."""

import re
import sys
import unicodedata
from collections.abc import Iterator

from dsv3_plugin.recipe.validation import nearest

_CALLED_OTHERWISE = {"HAN": "CJK", "CHINESE": "CJK", "RUSSIAN": "CYRILLIC", "ENGLISH": "LATIN"}
_BEHIND = re.compile(
    r" (CAPITAL|SMALL|FINAL|MODIFIER|LETTER|SYLLABLE|SYLLABICS|UNIFIED|COMPATIBILITY|IDEOGRAPH)\b"
)
"""What stands behind the script in a letter's name."""


def is_script(name: str) -> bool:
    """Whether there are letters of a script, in whatever case it is written."""
    return any(letter.startswith(f"{name.upper()} ") for letter in _letters())


def near_script(name: str) -> str:
    """What may be meant by a script that is none, for the end of a sentence."""
    if (meant := _CALLED_OTHERWISE.get(name.upper())) is not None:
        return f" (nearest: '{meant}')"
    known = {_BEHIND.split(letter)[0] for letter in _letters() if _BEHIND.search(letter)}
    return nearest(name.upper(), sorted(known)) or ", such as LATIN, CYRILLIC or CJK"


def _letters() -> Iterator[str]:
    """The names of all letters, of those first that most scripts have."""
    for number in range(sys.maxunicode + 1):
        if chr(number).isalpha() and (name := unicodedata.name(chr(number), "")):
            yield name
