"""The words the policy is asked with; rollout and learner build the same chat messages from here."""

from __future__ import annotations

from typing import Any

from mrpo.families import Family

INSTRUCTION = (
    "Look at the image and answer the question. Reason step by step inside <{think}></{think}>, one short sentence "
    "for each step, then give the final answer inside <answer></answer>."
)


def chat_messages(
    question: str, family: Family, *, terse: bool = False, shows_image: bool = True
) -> list[dict[str, Any]]:
    """One user turn with one image or none, in the form `processor.apply_chat_template` takes.

    Args:
        question: the question about the image.
        family: decides the think tag named in the instruction.
        terse: leave the instruction out; for models that were warm-started on bare questions, where
            every prompt token costs as much as a completion token.
        shows_image: whether an image comes before the text.
    """
    text = question if terse else f"{question}\n{INSTRUCTION.format(think=family.think_tag)}"
    image = [{"type": "image"}] if shows_image else []
    return [{"role": "user", "content": [*image, {"type": "text", "text": text}]}]
