"""How many tokens one call takes, by the rubric and the data it would really send. Knows the judge's pure modules."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrpo.choices import StructuredReply
from mrpo.config import JudgeConfig
from mrpo.types import AnswerRequest, JudgeRequest

if TYPE_CHECKING:
    from judge.prompts import Prompt

PIXELS_PER_TOKEN = 28  # a side: Qwen2.5-VL's rule; other models count otherwise
THOUGHTS = {"minimal": 50, "low": 400, "medium": 1500, "high": 5000}  # tokens of a reasoning model; assumed
OWN_PART = ('"steps": ', '"generated_answer": ')  # from here on, a completion's text differs from its group's


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTokens:
    """One call, in tokens. The prompt begins with what all calls share, then what a question's completions share."""

    rubric: float
    question: float  # with gold answer and rationale, and the image where it stands before what differs
    own: float  # the completion's text, the reply's form, and the image where it stands last
    image: float  # of one of the two above
    reply: float  # thoughts included

    @property
    def prompt(self) -> float:
        """All that is sent."""
        return self.rubric + self.question + self.own


def tokens_of(request: JudgeRequest | AnswerRequest, config: JudgeConfig, *, image_size: tuple[int, int]) -> CallTokens:
    """About one request.

    Args:
        request: what would be asked; its image is not read.
        config: of the judge.
        image_size: pixels, width and height.
    """
    from judge.prompts import prompt_of
    from judge.request import CHARS_PER_TOKEN

    prompt = prompt_of(request)
    place = next(prompt.text.index(part) for part in OWN_PART if part in prompt.text)
    image = image_tokens(*image_size) if config.send_image else 0
    first = config.provider.image_first
    thoughts = THOUGHTS.get(config.provider.reasoning_effort or "", 0)
    return CallTokens(
        rubric=len(prompt.rubric) / CHARS_PER_TOKEN,
        question=place / CHARS_PER_TOKEN + (image if first else 0),
        own=(len(prompt.text) - place + _form_chars(prompt, config)) / CHARS_PER_TOKEN + (0 if first else image),
        image=image,
        reply=min(prompt.reply_tokens + thoughts, config.max_completion_tokens),
    )


def image_tokens(width: int, height: int) -> int:
    """One token a square of 28 by 28 pixels."""
    return math.ceil(width / PIXELS_PER_TOKEN) * math.ceil(height / PIXELS_PER_TOKEN)


def _form_chars(prompt: Prompt[Any], config: JudgeConfig) -> int:
    """Of the reply's form, where it is part of what a model reads."""
    from judge.request import form_of

    match config.provider.structured:
        case StructuredReply.JSON_SCHEMA | StructuredReply.TOOL_CALL:
            return len(json.dumps(prompt.schema))
        case StructuredReply.JSON_OBJECT | StructuredReply.NONE:
            return len(form_of(prompt.schema))
        case StructuredReply.STRUCTURED_OUTPUTS:
            return 0
