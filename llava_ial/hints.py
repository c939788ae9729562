"""Hints: the addresses that AddressCLIP finds likeliest for a photo, written before the first question about it.

    <image>
    Likely addresses: Grant Street, between Third Avenue and Fourth Avenue, Downtown 41%; Smithfield Street, ... 17%.
    Where was this photo taken?

A language model reads names more easily than it sees them. Its answer may differ from the first hint: whether it is
then right more often than that hint is measured by every evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llava_ial.address import Address, format_spoken
from llava_ial.conversation import IMAGE_TOKEN, Message

HINT = "Likely addresses: {addresses}."


@dataclass(frozen=True)
class HintSettings:
    """How a model's hints are made; stands in its manifest.

    Attributes:
        count: Addresses in a hint.
        temperature: Divides the encoder's logits before they become probabilities.
    """

    count: int
    temperature: float


def format_hint(likeliest: Sequence[tuple[Address, float]]) -> str:
    """One line of addresses with their probabilities, best first; the city, the same for all, is left out."""
    parts = [f"{hinted_name(address)} {round(100 * probability)}%" for address, probability in likeliest]
    return HINT.format(addresses="; ".join(parts))


def hinted_name(address: Address) -> str:
    """An address as it stands in a hint."""
    return format_spoken(replace(address, city="", region="", country=""))


def with_hint(messages: Sequence[Message], hint: str) -> list[Message]:
    """The same dialogue with a hint between the photo and the first question; an empty hint changes nothing."""
    first, *rest = messages
    if not hint:
        return [first, *rest]
    question = first.content.replace(IMAGE_TOKEN, "").strip()
    return [Message(first.role, f"{IMAGE_TOKEN}\n{hint}\n{question}"), *rest]
