"""How a rank ends is told to the person, and whose fault it was."""

from types import SimpleNamespace

import pytest

from dsv3_plugin.launch import rank


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (PermissionError(13, "Permission denied", "/x"), 2, ("refused", "/x: Permission denied.")),
        (OSError(36, "File name too long", "/y"), 2, ("refused", "/y: File name too long.")),
        (OSError(5, "Gone", "/z"), 1, ("crashed", "OSError: [Errno 5] Gone: '/z'")),
        (KeyError(), 1, ("crashed", "KeyError")),
    ],
)
def test_what_a_place_does_not_allow_is_no_fault_of_ours(error, code, told):
    sent = []
    outbox = SimpleNamespace(has_log=False, send=lambda *words: sent.append(words))
    assert rank._tell(error, outbox) == code
    assert sent == [told]
