"""A tokenizer, as the server uses it."""

import shutil

import pytest

from dsv3_plugin.data.chat.conversation import Conversation
from dsv3_plugin.data.tokenizer import open_tokenizer
from dsv3_plugin.inference.requests import WrongField
from dsv3_plugin.inference.server.words import words_of

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
ASKED = [{"role": "user", "content": "add"}]
TURNS = "{% for message in messages %}{{ message.content or '' }}{% endfor %}"
TOOLS = "{{ tools | tojson if tools }}"
CALLS = "{% for message in messages %}{{ message.tool_calls or '' }}{% endfor %}"


@pytest.fixture
def prompt_by(tokenizer, tmp_path):
    """The prompt of a template."""

    def prompt(template, conversation):
        folder = tmp_path / "other"
        shutil.copytree(tokenizer.folder, folder)
        (folder / "chat_template.jinja").write_text(template)
        return words_of(open_tokenizer(folder)).prompt(conversation)

    return prompt


@pytest.mark.parametrize(
    ("template", "conversation", "what", "field"),
    [
        (TURNS, Conversation(ASKED, [TOOL]), "tools", "tools"),
        (TURNS + TOOLS, Conversation([*ASKED, CALL], [TOOL]), "tool calls", "messages"),
    ],
)
def test_tools_that_the_template_leaves_out_are_refused(
    prompt_by, template, conversation, what, field
):
    with pytest.raises(WrongField, match=f"writes nothing of {what}: leave them out") as refused:
        prompt_by(template, conversation)
    assert refused.value.field == field


def test_tools_are_told(prompt_by):
    told = prompt_by(TURNS + TOOLS + CALLS, Conversation([*ASKED, CALL], [TOOL]))
    assert told.count("'name': 'add'") == 1
    assert told.count('"name": "add"') == 1
