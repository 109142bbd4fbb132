"""What makes two calls the same call: the name of a ruling in the cache. Nothing is read but an image, once."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from functools import lru_cache

from judge.answer_rubric import ANSWER_RUBRIC_VERSION
from judge.image import FileVersion, file_version
from judge.prompts import prompt_of
from judge.request import build_body
from judge.rubric import RUBRIC_VERSION
from mrpo.config import JudgeConfig
from mrpo.types import AnswerRequest, JudgeRequest

# In: the body as it would be sent (model, rubric, question, gold answer, gold rationale, steps or generated answer, the
# form asked for, temperature, reasoning effort, where the rubric stands), the image file's bytes, the rubric's version.
# The bytes stand for what is sent: as they are, or, of formats that endpoints do not take, the PNG that `judge.image`
# makes of them (with grey scaled to its range). A change of that conversion needs another number here.
# Whatever a later setting adds to the body is in as well.
# Out, because it decides about no ruling: where the endpoint is (a server started for a run has another port each
# time), keys, the completion's name, the image's path, retries and limits, and `max_completion_tokens`: a reply that it
# cuts is no ruling.
KEY_FORMAT = 1  # of this list
ANY_LENGTH = 1  # stands for every `max_completion_tokens`
KNOWN_IMAGES = 65_536  # digests kept, of some 100 bytes each


def ruling_key(request: JudgeRequest | AnswerRequest, config: JudgeConfig, *, model: str) -> str:
    """SHA-256 of all that decides a ruling, in hexadecimal.

    Args:
        request: what to rule on.
        config: of the judge.
        model: that would rule.

    Raises:
        OSError: the image cannot be read.
    """
    prompt = prompt_of(request)
    body = build_body(prompt, replace(config, max_completion_tokens=ANY_LENGTH), model=model, image_url=None)
    image = image_digest(request.image) if config.send_image else "none"
    place = "first" if config.provider.image_first else "last"
    head = f"{KEY_FORMAT} {prompt.schema_name} {rubric_version(request)} {image} {place}\n"
    return hashlib.sha256(head.encode("ascii") + body).hexdigest()


def rubric_version(request: JudgeRequest | AnswerRequest) -> str:
    """Of the rubric that goes with a request."""
    return ANSWER_RUBRIC_VERSION if isinstance(request, AnswerRequest) else RUBRIC_VERSION


def image_digest(path: str) -> str:
    """SHA-256 of an image file; it is read again when it was written or replaced since.

    Raises:
        OSError: it cannot be read.
    """
    return _digest(path, file_version(os.stat(path)))


@lru_cache(maxsize=KNOWN_IMAGES)
def _digest(path: str, _version: FileVersion) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
