"""The order in which an evaluation asks: questions of one image together; results stay in the questions' own order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from mrpo.eval.evaluate import by_image, evaluate
from mrpo.eval.store import EvaluationStore
from mrpo.types import Example
from tests.unit.fakes import FakeJudge
from tests.unit.test_eval_command import RIGHT, collector_of, prepared


def interleaved(root: Path) -> list[Example]:
    """Six questions of two images, in turns."""
    return [replace(item, image=f"{number % 2}.png") for number, item in enumerate(prepared(root, num=6))]


def test_questions_of_one_image_stand_together_and_keep_their_order(tmp_path: Path) -> None:
    examples = interleaved(tmp_path)
    assert [item.id for item in by_image(examples)] == [examples[number].id for number in (0, 2, 4, 1, 3, 5)]


def test_the_judge_gets_them_so_and_the_rows_come_in_the_questions_order(tmp_path: Path) -> None:
    examples = interleaved(tmp_path / "sets")
    judge = FakeJudge()
    collector = collector_of({item.id: RIGHT for item in examples}, judge)
    with EvaluationStore.open(tmp_path / "out", {"a": 1}) as store:
        work = evaluate(
            examples, collector, store, max_new_tokens=8, chunk_size=2, threshold=0.6, max_failure_share=1.0
        )
        rows = asyncio.run(work)
    assert [row.prompt_id for row in rows] == [item.id for item in examples]
    asked = [item.key.split("#")[0] for item in judge.answer_calls]
    assert asked == [item.id for item in by_image(examples)]
