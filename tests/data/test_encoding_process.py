"""A process that encodes: what it answers, and how its end is told."""

import os
import signal

import pytest

from dsv3_plugin.data.encoding_process import EncodingProcess
from dsv3_plugin.errors import UserError


class Doubles:
    """Doubles numbers; of none it makes an error, and a negative one is its end."""

    def encode(self, batch):
        if not batch:
            raise ValueError("nothing to double")
        if min(batch) < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return [2 * number for number in batch]


def test_it_answers_passes_on_what_is_raised_and_is_missed_when_it_was_killed():
    process = EncodingProcess(Doubles())
    assert process.encode([1, 2]) == [2, 4]
    with pytest.raises(ValueError, match="nothing to double"):
        process.encode([])
    assert process.encode([3]) == [6]
    for batch in ([-1], [1]):
        with pytest.raises(UserError, match=r"was killed, most likely for memory: use fewer wor"):
            process.encode(batch)
    process.end()
