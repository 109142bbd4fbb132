"""`python -m tests.integration.published_engines <plan.json>`: engines one after another in one process of their own.

vLLM reads its environment when it is imported, and importing it takes longer than starting an engine of a toy. The
plan's file lists engines and what to ask each; the answers are written beside it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mrpo.config import Config, ModelConfig, RolloutConfig
from mrpo.types import RolloutRequest, ScoreSample
from rollout.spec import engine_environment, engine_specs

MAX_MODEL_LEN = 1536
MAX_NEW_TOKENS = 48


@dataclass(kw_only=True)
class Ask:
    """One engine and what is asked of it. Written by a test, read by the process."""

    name: str
    folder: str
    model_type: str
    terse: bool = False
    max_pixels: int = 802_816
    max_tiles: int | None = None
    pixels: list[tuple[str, str]] = field(default_factory=list)  # (question, image): pixel tensors and prompt ids
    greedy: list[tuple[str, str]] = field(default_factory=list)  # (question, image)
    score: list[dict[str, Any]] = field(default_factory=list)  # fields of `ScoreSample`


def run_engines(asks: list[Ask], folder: Path, *, timeout_s: float) -> dict[str, dict[str, Any]]:
    """Start the process and wait for it; answers by name: `ids`, `texts`, `token_ids` and `scores`.

    Pixel tensors lie in `folder/<name>-<index>.safetensors`.
    """
    import subprocess

    from tests.locations import REPOSITORY

    plan = folder / "plan.json"
    plan.write_text(json.dumps([asdict(ask) for ask in asks]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.published_engines", str(plan)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    answers: dict[str, dict[str, Any]] = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    return answers


def _spec(ask: Ask) -> Any:
    model = ModelConfig(terse_prompt=ask.terse, max_pixels=ask.max_pixels, max_tiles=ask.max_tiles)
    config = Config(model=model, rollout=RolloutConfig(max_num_seqs=16, max_model_len=MAX_MODEL_LEN))
    return engine_specs(config, ask.folder, ask.model_type, log_dir=None)[0]


def _answer(ask: Ask, folder: Path) -> dict[str, Any]:
    from safetensors.torch import save_file

    from rollout.engine import Engine

    engine = Engine(_spec(ask))
    ids: list[list[int]] = []
    for index, (question, image) in enumerate(ask.pixels):
        prompt = engine._prompt(question, image)
        ids.append(list(prompt["prompt_token_ids"]))
        (item,) = prompt["mm_kwargs"]["image"]
        tensors = {name: item[name].data.contiguous() for name in ("pixel_values", "image_grid_thw") if name in item}
        save_file(tensors, folder / f"{ask.name}-{index}.safetensors")
    texts: dict[int, str] = {}
    token_ids: dict[int, list[int]] = {}
    scores: dict[int, list[float]] = {}

    def ended(index: int, completion: Any) -> None:
        texts[index], token_ids[index] = completion.text, completion.completion_token_ids

    for index, (question, image) in enumerate(ask.greedy):
        request = RolloutRequest(
            prompt_id=str(index), sample_index=0, question=question, image=image, seed=0, temperature=0.0, top_p=1.0,
            max_new_tokens=MAX_NEW_TOKENS,
        )  # fmt: skip
        engine.sample(request, lambda completion, index=index: ended(index, completion))  # type: ignore[misc]
    while engine.busy:
        engine.step()
    for index, sample in enumerate(ask.score):
        engine.score(ScoreSample(**sample), lambda values, index=index: scores.update({index: values}))  # type: ignore[misc]
    while engine.busy:
        engine.step()
    engine.close()
    return {
        "ids": ids,
        "texts": [texts[index] for index in range(len(ask.greedy))],
        "token_ids": [token_ids[index] for index in range(len(ask.greedy))],
        "scores": [scores[index] for index in range(len(ask.score))],
    }


def _main(plan: Path) -> None:
    asks = [Ask(**fields) for fields in json.loads(plan.read_text(encoding="utf-8"))]
    os.environ.update(engine_environment(_spec(asks[0])))
    answers = {ask.name: _answer(ask, plan.parent) for ask in asks}
    (plan.parent / "answers.json").write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
