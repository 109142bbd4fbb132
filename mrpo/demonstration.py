"""How a gold rationale and its answer become the text a policy is shown to write."""

from __future__ import annotations


def write_demonstration(rationale: str, answer: str, *, think_tag: str, separator: str = "\n") -> str:
    """A whole completion in the asked form, without the end-of-turn token.

    Args:
        rationale: the reasoning, without tags.
        answer: the gold answer.
        think_tag: the family's.
        separator: what stands between the two blocks.
    """
    return f"<{think_tag}>{rationale}</{think_tag}>{separator}<answer>{answer}</answer>"
