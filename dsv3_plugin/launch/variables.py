"""Reading an environment variable that has to be a number. No torch here."""

import re
from collections.abc import Mapping

from dsv3_plugin.errors import UserError


def number(
    environment: Mapping[str, str], name: str, *, least: int, most: int | None = None
) -> int:
    """The whole number that a launcher's variable holds.

    Raises:
        UserError: it is not set, or holds anything else.
    """
    wanted = f"a whole number from {least}" + (" on" if most is None else f" to {most}")
    if name not in environment:
        raise UserError(f"{name} is not set in the environment: set it to {wanted}.")
    written = environment[name].strip()
    # Not int() alone, which takes 1_0, digits of other scripts, and not more than 4300 of them.
    plain = re.fullmatch(r"[0-9]{1,10}", written) is not None
    if not plain or not least <= int(written) <= (most or 2**31):
        raise UserError(f"{name} is {environment[name]!r} in the environment: set it to {wanted}.")
    return int(written)
