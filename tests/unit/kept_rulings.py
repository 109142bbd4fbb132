"""What tests of kept rulings share: calls, rulings, and the cache without its event loop."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from judge.accounting import KnownRuling
from judge.cache import RulingCache
from judge.ruling_key import ruling_key
from mrpo.choices import JudgeKind
from mrpo.config import JudgeConfig
from mrpo.types import AnswerRequest, JudgeRequest, Verdicts

RULING = Verdicts(alignment=[True, False], contribution=[False, False])


def image_file(folder: Path) -> str:
    """Path of a small image."""
    path = folder / "scan.png"
    Image.new("L", (8, 8), 90).save(path)
    return str(path)


def config_of(**changes: Any) -> JudgeConfig:
    """Of an endpoint that nobody asks."""
    return JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, **{"url": "http://here/v1", "model": "m", **changes})


def steps_request(image: str, **changes: Any) -> JudgeRequest:
    """About two steps."""
    request = JudgeRequest(
        key="p#0", image=image, question="Which side?", answer="left", rationale="On the left.", steps=["A.", "B."]
    )
    return replace(request, **changes)


def answer_request(image: str) -> AnswerRequest:
    """About an answer."""
    return AnswerRequest(key="p#0", image=image, question="Which side?", answer="left", generated="left")


def find(cache: RulingCache, request: JudgeRequest | AnswerRequest) -> KnownRuling | None:
    """What the cache knows."""
    return asyncio.run(cache.find(request)).known


def keep(cache: RulingCache, request: JudgeRequest | AnswerRequest, ruling: Verdicts | bool, model: str = "m") -> None:
    """Keep a ruling under the name that the call has now."""
    key = ruling_key(request, config_of(), model=model)
    asyncio.run(cache.keep(request, ruling, model=model, key=key))


def files_of(folder: Path) -> list[Path]:
    """Every file at any depth."""
    return [path for path in folder.rglob("*") if path.is_file()]
