"""The body of one chat-completions request. Pure.

The order serves prefix caching: the rubric is the same for every call, question and gold are the same for a group, the
steps differ, and the image, which engines cache by its own hash, comes last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from judge.rubric import RUBRIC
from judge.schema import step_names, verdict_schema
from mrpo.config import JudgeConfig
from mrpo.types import JudgeRequest

CHARS_PER_TOKEN = 4  # rule of thumb; the limiter is corrected by what the server counts
IMAGE_TOKENS = 1000  # likewise, of one image
REPLY_TOKENS_PER_STEP = 20


def user_text(*, question: str, answer: str, rationale: str, steps: Sequence[str]) -> str:
    """The data of a call as one JSON object, so that no text in it can pass for a part of the message around it."""
    return json.dumps(
        {
            "question": question,
            "gold_answer": answer,
            "gold_rationale": rationale,
            "steps": dict(zip(step_names(len(steps)), steps, strict=True)),
        },
        ensure_ascii=False,  # a judge reads "µm", not "\\u00b5m"
    )


def build_body(request: JudgeRequest, config: JudgeConfig, *, image_url: str | None) -> bytes:
    """The JSON body of one call.

    Args:
        request: what to rule on; at least one step.
        config: gives model, temperature and reply length.
        image_url: data URL of the image, or None to send text only.
    """
    assert request.steps, f"{request.key}: a completion without steps is not judged"
    text = user_text(question=request.question, answer=request.answer, rationale=request.rationale, steps=request.steps)
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image_url is not None:
        content.append({"type": "image_url", "image_url": {"url": image_url}})
    body: dict[str, Any] = {
        "model": config.model,
        "messages": [{"role": "system", "content": RUBRIC}, {"role": "user", "content": content}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdicts", "strict": True, "schema": verdict_schema(len(request.steps))},
        },
        "max_completion_tokens": config.max_completion_tokens,
    }
    if config.temperature is not None:
        body["temperature"] = config.temperature
    return json.dumps(body).encode("ascii")


def estimate_tokens(request: JudgeRequest, *, send_image: bool) -> int:
    """About how many tokens a call will cost, prompt and reply, before the server has counted them."""
    num_chars = len(RUBRIC) + len(request.question) + len(request.answer) + len(request.rationale)
    num_chars += sum(len(step) for step in request.steps)
    reply = REPLY_TOKENS_PER_STEP * len(request.steps)
    return num_chars // CHARS_PER_TOKEN + reply + (IMAGE_TOKENS if send_image else 0)
