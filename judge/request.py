"""The body of one chat-completions request. Pure.

The order serves prefix caching: the rubric is the same for every call, question and gold are the same for a group, what
the policy wrote differs, and the image, which engines cache by its own hash, comes last; or right after the rubric for
an engine that would otherwise compute its tokens again for every completion (`judge.provider.image_first`).
"""

from __future__ import annotations

import json
from typing import Any

from judge.prompts import Prompt
from mrpo.choices import StructuredReply, TokenLimitField
from mrpo.config import JudgeConfig

CHARS_PER_TOKEN = 4  # rule of thumb; the limiter is corrected by what the server counts
IMAGE_TOKENS = 1000  # likewise, of one image


def build_body(prompt: Prompt[Any], config: JudgeConfig, *, model: str, image_url: str | None) -> bytes:
    """The JSON body of one call, in the form that `config.provider` understands.

    Args:
        prompt: what to rule on.
        config: gives provider, temperature and reply length.
        model: the endpoint's name of it.
        image_url: data URL of the image, or None to send text only.
    """
    provider = config.provider
    picture = [] if image_url is None else [{"type": "image_url", "image_url": {"url": image_url}}]
    content = [*(picture if provider.image_first else []), _text(prompt.text)]
    if provider.structured in (StructuredReply.JSON_OBJECT, StructuredReply.NONE):
        content.append(
            _text(f"Reply with one JSON object and nothing else, of exactly this form: {form_of(prompt.schema)}")
        )
    if not provider.image_first:
        content += picture
    if provider.system_role:
        messages = [{"role": "system", "content": prompt.rubric}, {"role": "user", "content": content}]
    else:
        messages = [{"role": "user", "content": [_text(prompt.rubric), *content]}]
    body: dict[str, Any] = {"model": model, "messages": messages, **_structure(prompt, provider.structured)}
    if provider.token_limit != TokenLimitField.NONE:
        body[provider.token_limit.value] = config.max_completion_tokens
    if provider.reasoning_effort is not None:
        body["reasoning_effort"] = provider.reasoning_effort
    if config.temperature is not None:
        body["temperature"] = config.temperature
    return json.dumps(body).encode("ascii")


def form_of(schema: dict[str, Any]) -> str:
    """A reply's schema as a template that a model reads easily: `{"step1": {"Alignment": 0 or 1, …}, …}`."""
    if schema["type"] != "object":
        return " or ".join(str(value) for value in schema["enum"])
    items = (f"{json.dumps(name)}: {form_of(item)}" for name, item in schema["properties"].items())
    return f"{{{', '.join(items)}}}"


def _structure(prompt: Prompt[Any], structured: StructuredReply) -> dict[str, Any]:
    """The fields that hold a reply to its form."""
    name, schema = prompt.schema_name, prompt.schema
    match structured:
        case StructuredReply.JSON_SCHEMA:
            form = {"name": name, "strict": True, "schema": schema}
            return {"response_format": {"type": "json_schema", "json_schema": form}}
        case StructuredReply.JSON_OBJECT:
            return {"response_format": {"type": "json_object"}}
        case StructuredReply.TOOL_CALL:
            function = {"name": name, "description": "Report the marks.", "strict": True, "parameters": schema}
            return {
                "tools": [{"type": "function", "function": function}],
                "tool_choice": {"type": "function", "function": {"name": name}},
            }
        case StructuredReply.STRUCTURED_OUTPUTS:
            return {"structured_outputs": {"json": schema}}
        case StructuredReply.NONE:
            return {}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def estimate_tokens(prompt: Prompt[Any], *, send_image: bool) -> int:
    """About how many tokens a call will cost, prompt and reply, before the server has counted them."""
    num_chars = len(prompt.rubric) + len(prompt.text)
    return num_chars // CHARS_PER_TOKEN + prompt.reply_tokens + (IMAGE_TOKENS if send_image else 0)
