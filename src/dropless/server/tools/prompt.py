"""A chat with functions as prompt token ids.

A template that was made for calls in the form of `dropless.text.tool_calls` gets functions, calls
and results as they are. To any other model they are told in words, in the same form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dropless.text.chat_template import ChatTemplate
from dropless.text.tool_calls import CLOSE, OPEN

Message = Mapping[str, Any]

_FIRST_WORDS = "You are a helpful assistant."
_HOW_TO = f"""\
# Functions

You can call these functions. Each line is the JSON description of one, with a JSON schema of its \
parameters:
<tools>
%s
</tools>

To call a function, end your answer with its name and arguments as one JSON object, between these \
tags:
{OPEN}
{{"name": "the function's name", "arguments": {{"a parameter": "its value"}}}}
{CLOSE}
Its result comes in the next message, between <tool_response> and </tool_response>. Call a \
function only if it helps to answer."""


def render_chat(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Prompt token ids of messages as templates know them, calls and results among them. `tools`
    are the functions that the model is told of.

    Raises:
        ChatTemplateError: what `ChatTemplate.render` raises it for.
    """
    if template.knows_calls:
        return template.render(messages, tools=tools or None)
    messages = _in_words(messages)
    if tools:
        messages = _introduced(messages, _told(tools), template.takes_system)
    return template.render(messages)


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as a model writes it."""
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{OPEN}\n{written}\n{CLOSE}"


def _told(tools: Sequence[Mapping[str, Any]]) -> str:
    return _HOW_TO % "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)


def _in_words(messages: Sequence[Message]) -> list[Message]:
    """Calls as text of the assistant, and results as what the user says: one message of his, also
    with what he says next, for templates that insist on turns."""
    told: list[Message] = []
    answers = False  # whether the last one is of results
    for message in messages:
        role, content = message["role"], message["content"]
        if message.get("tool_calls"):
            calls = [call["function"] for call in message["tool_calls"]]
            parts = [content] if content else []
            parts += [call_text(call["name"], call["arguments"]) for call in calls]
            content = "\n".join(parts)
        elif role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        if role == "user" and answers:
            content = f"{told.pop()['content']}\n{content}"
        told.append({"role": role, "content": content})
        answers = message["role"] == "tool"
    return told


def _introduced(messages: Sequence[Message], about: str, takes_system: bool) -> list[Message]:
    """With `about` in the system message, or where there can be none, in the first one."""
    first, *others = messages
    if first["role"] == "system":
        return [{**first, "content": f"{first['content']}\n\n{about}"}, *others]
    if takes_system:
        return [{"role": "system", "content": f"{_FIRST_WORDS}\n\n{about}"}, first, *others]
    return [{**first, "content": f"{about}\n\n{first['content']}"}, *others]
