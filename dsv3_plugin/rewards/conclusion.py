"""What an answer comes to, without the words around it."""

from dsv3_plugin.rewards.forms import tagged
from dsv3_plugin.rewards.mathematics import last_box
from dsv3_plugin.rewards.verdict import Attempt


def conclusion(attempt: Attempt) -> str:
    """What stands in the last `\\boxed{…}`; where there is none in the last `<answer>`; where there
    is none of either all that is behind the thoughts."""
    box = last_box(attempt.answer)
    return tagged(attempt.answer) if box is None else box.strip()
