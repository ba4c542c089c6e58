"""What of a token's numbers JSON has."""

import json
import math

import pytest

from dsv3_plugin.inference.requests import Completion, TokenReport
from dsv3_plugin.inference.server.replies import Choice, Replies
from dsv3_plugin.inference.server.spelling import Spelling
from dsv3_plugin.inference.text import TextStream


@pytest.mark.parametrize("kind", ["text_completion", "chat.completion"])
@pytest.mark.parametrize("processed", [False, True])
def test_a_token_of_a_broken_model_has_no_probability_and_is_told(kind, processed):
    report = TokenReport(0, math.nan, -math.inf, ((1, math.nan), (0, -1.5)), 0)
    choice = Choice(0, (1,), TextStream(lambda ids: "a" * len(ids)))
    choice.add([report], Completion(0, 0, (1,), (report,), None, "length"))
    replies = Replies(kind, "small", Spelling(("a", "b"), (b"a", b"b")), True, processed)
    for told in (replies.whole([choice]), replies.piece(choice, "", "a", [report])):
        text = json.dumps(told, allow_nan=False)
        assert "null" in text
        assert "-1.5" in text
