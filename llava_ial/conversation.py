"""Conversations about one photo: the message type, and LLaVA's JSON in and out.

A message is ``{"role": "user" | "assistant", "content": text}``; ``<image>`` stands in the first user message, where
LLaVA's data puts it. The one prompt template of the project is ``chat_template.jinja`` beside this file.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_ial.errors import UserError

IMAGE_TOKEN = "<image>"  # noqa: S105 (a mark in a text, not a secret)
CHAT_TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")
_LLAVA_ROLES = {"human": "user", "gpt": "assistant"}
_ROLE_TO_LLAVA = {role: name for name, role in _LLAVA_ROLES.items()}


@dataclass(frozen=True)
class Message:
    """One turn: ``role`` is ``user`` or ``assistant``."""

    role: str
    content: str


def load_chat_template() -> str:
    """The Jinja source of the prompt template used by training, evaluation and chat alike."""
    return CHAT_TEMPLATE_FILE.read_text(encoding="utf-8")


def chat_template_hash() -> str:
    """SHA-256 of the template, kept in every manifest: a model is asked as it was trained or not at all."""
    return hashlib.sha256(CHAT_TEMPLATE_FILE.read_bytes()).hexdigest()


def user_question(question: str) -> Message:
    """The first user message about a photo: the image mark, a line break, the question."""
    return Message("user", f"{IMAGE_TOKEN}\n{question}")


def validate_messages(messages: Sequence[Message], name: str, *, num_images: int = 1) -> None:
    """Checks that a dialogue alternates user and assistant, has no empty turn and as many image marks as photos.

    Raises:
        UserError: Names the conversation and what is wrong with it.
    """
    if not messages:
        raise UserError(f"conversation {name}: no messages")
    for position, message in enumerate(messages):
        expected = "user" if position % 2 == 0 else "assistant"
        if message.role not in _ROLE_TO_LLAVA:
            raise UserError(f"conversation {name}: unknown role '{message.role}'; allowed: user, assistant")
        if message.role != expected:
            raise UserError(f"conversation {name}: turn {position + 1} is by {message.role}, expected {expected}")
        if not message.content.replace(IMAGE_TOKEN, "").strip():
            raise UserError(f"conversation {name}: turn {position + 1} is empty")
        if message.role == "assistant" and IMAGE_TOKEN in message.content:
            raise UserError(f"conversation {name}: turn {position + 1}: {IMAGE_TOKEN} in an answer")
    marks = sum(message.content.count(IMAGE_TOKEN) for message in messages)
    if marks != num_images:
        raise UserError(f"conversation {name}: {marks} {IMAGE_TOKEN} marks for {num_images} photos")


def to_llava_json(conversation_id: str, image_path: str, messages: Sequence[Message]) -> dict[str, Any]:
    """One entry of LLaVA's training file."""
    turns = [{"from": _ROLE_TO_LLAVA[m.role], "value": m.content} for m in messages]
    return {"id": conversation_id, "image": image_path, "conversations": turns}


def from_llava_json(entry: Mapping[str, Any]) -> tuple[str, str | None, list[Message]]:
    """Inverse of ``to_llava_json``: id, image path (None for a text-only entry) and messages.

    Raises:
        UserError: The entry is not of LLaVA's form.
    """
    name = str(entry.get("id", "without id"))
    turns = entry.get("conversations")
    if not isinstance(turns, list):
        raise UserError(f"conversation {name}: 'conversations' is missing or no list")
    messages = []
    for turn in turns:
        speaker, value = (turn.get("from"), turn.get("value")) if isinstance(turn, Mapping) else (turn, None)
        if speaker not in _LLAVA_ROLES or not isinstance(value, str):
            raise UserError(f"conversation {name}: turn from '{speaker}'; allowed: human, gpt, with a text 'value'")
        messages.append(Message(_LLAVA_ROLES[speaker], value))
    image = entry.get("image")
    if image is not None and not isinstance(image, str):
        raise UserError(f"conversation {name}: 'image' is a {type(image).__name__}; allowed: the path of one photo")
    validate_messages(messages, name, num_images=1 if image else 0)
    return name, image, messages
