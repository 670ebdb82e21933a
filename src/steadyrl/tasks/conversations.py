"""Conversations as rows of chat data hold them: a list of messages with `role` and `content`."""

from collections.abc import Mapping, Sequence
from typing import Any

from steadyrl.tasks.base import Message
from steadyrl.tasks.values import show, text_of

ROLES = ("system", "developer", "user", "assistant", "tool")


def read_messages(value: Sequence[Any]) -> tuple[Message, ...]:
    """The messages of a conversation that the model is to continue.

    Content is text, or a list of text parts (`{"type": "text", "text": …}`), which are joined. Other fields of a
    message, such as `name`, must be text and go to the chat template; fields without a value are left out.

    Raises:
        ValueError: it is no such conversation, or its last message is not the user's or a tool's.
    """
    messages = tuple(_message(item, number) for number, item in enumerate(value, 1))
    if not any(message["role"] == "user" for message in messages):
        raise ValueError("holds no message of the user")
    if (last := messages[-1]["role"]) not in ("user", "tool"):
        raise ValueError(f"ends with a message of the {last}; the last one must be the user's, for the model to answer")
    return messages


def last_question(messages: Sequence[Message]) -> str:
    """Text of the last message of the user."""
    return next(message["content"] for message in reversed(messages) if message["role"] == "user")


def _message(item: Any, number: int) -> Message:
    if not isinstance(item, Mapping) or not {"role", "content"} <= item.keys():
        raise ValueError(f"message {number} must have `role` and `content`, found {show(item)}")
    if item["role"] not in ROLES:
        raise ValueError(f"message {number} has the role {show(item['role'])}; known: {', '.join(ROLES)}")
    try:
        others = {name: text_of(inner) for name, inner in item.items() if name not in _OWN and inner is not None}
        return {"role": item["role"], "content": _content(item["content"], item["role"]), **others}
    except ValueError as error:
        raise ValueError(f"message {number} {error}") from error


_OWN = ("role", "content")


def _content(value: Any, role: str) -> str:
    """The text of a message; that of the user is not empty."""
    if isinstance(value, list):
        for part in value:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"has a part that is not text: {show(part)}")
        value = "".join(part["text"] for part in value)
    return "" if value == "" and role != "user" else text_of(value)
