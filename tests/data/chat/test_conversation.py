"""Rows of conversations, and what is no such row."""

import pytest

from dsv3_plugin.data.chat.conversation import conversation_of
from dsv3_plugin.errors import UserError


def turn(role, content="text", **more):
    return {"role": role, "content": content, **more}


def test_a_pair_is_a_conversation_of_two_turns():
    for key in ("response", "completion"):
        found = conversation_of({"prompt": "ask", key: "answer", "system": "be brief"}, "a.jsonl:1")
        roles = [message["role"] for message in found.messages]
        assert roles == ["system", "user", "assistant"]
        assert found.messages[-1]["content"] == "answer"


def test_tools_answer_an_assistant_that_calls_them():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    tools = [{"type": "function", "function": {"name": "add"}}]
    messages = [turn("user"), call, turn("tool"), turn("tool"), turn("assistant")]
    found = conversation_of({"messages": messages, "tools": tools}, "a.jsonl:1")
    assert found.tools == tools
    assert found.assistant_turns == [1, 4]
    assert "content" not in found.messages[1], "a key without a value is none to a template"


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ([], "is not a JSON object"),
        ({"text": "x"}, r'neither "messages" nor "prompt" and "response" \(its keys: text\)'),
        ({"prompt": "x"}, 'neither "messages"'),
        ({"prompt": "x", "response": 3}, "the assistant's text is not text but int"),
        ({"messages": []}, "not a list of turns"),
        ({"messages": "hello"}, "not a list of turns"),
        ({"messages": [turn("user")]}, "no turn of an assistant"),
        ({"messages": [turn("user"), turn("assistant"), turn("user")]}, "ends with a turn of user"),
        ({"messages": [turn("assistant"), turn("user")]}, "assistant at the beginning is out of"),
        ({"messages": [turn("user"), turn("user")]}, "turn 2: user after user is out of order"),
        (
            {"messages": [turn("user"), turn("system"), turn("assistant")]},
            "turn 2: system after user is out of order",
        ),
        ({"messages": [turn("user"), turn("tool")]}, "turn 2: tool after user is out of order"),
        ({"messages": [turn("narrator")]}, "the role 'narrator'"),
        ({"messages": ["hello"]}, 'turn 1 is not an object with a "role"'),
        ({"messages": [{"role": "user"}]}, 'turn 1 has no "content"'),
        (
            {"messages": [turn("user"), turn("assistant")], "tools": "add"},
            '"tools" is not a list of JSON schemas',
        ),
    ],
)
def test_what_is_no_conversation_is_named_with_its_place(row, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        conversation_of(row, "chat.jsonl line 7")
    assert str(error.value).startswith("chat.jsonl line 7")
