"""The body of one chat-completions request. Pure.

The order serves prefix caching: the rubric is the same for every call, question and gold are the same for a group, what
the policy wrote differs, and the image, which engines cache by its own hash, comes last.
"""

from __future__ import annotations

import json
from typing import Any

from judge.prompts import Prompt
from mrpo.config import JudgeConfig

CHARS_PER_TOKEN = 4  # rule of thumb; the limiter is corrected by what the server counts
IMAGE_TOKENS = 1000  # likewise, of one image


def build_body(prompt: Prompt[Any], config: JudgeConfig, *, image_url: str | None) -> bytes:
    """The JSON body of one call.

    Args:
        prompt: what to rule on.
        config: gives model, temperature and reply length.
        image_url: data URL of the image, or None to send text only.
    """
    content: list[dict[str, Any]] = [{"type": "text", "text": prompt.text}]
    if image_url is not None:
        content.append({"type": "image_url", "image_url": {"url": image_url}})
    body: dict[str, Any] = {
        "model": config.model,
        "messages": [{"role": "system", "content": prompt.rubric}, {"role": "user", "content": content}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": prompt.schema_name, "strict": True, "schema": prompt.schema},
        },
        "max_completion_tokens": config.max_completion_tokens,
    }
    if config.temperature is not None:
        body["temperature"] = config.temperature
    return json.dumps(body).encode("ascii")


def estimate_tokens(prompt: Prompt[Any], *, send_image: bool) -> int:
    """About how many tokens a call will cost, prompt and reply, before the server has counted them."""
    num_chars = len(prompt.rubric) + len(prompt.text)
    return num_chars // CHARS_PER_TOKEN + prompt.reply_tokens + (IMAGE_TOKENS if send_image else 0)
