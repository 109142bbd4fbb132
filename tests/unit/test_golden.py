"""Values computed independently of this code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mrpo.advantages import gdpo_advantages, grpo_advantages, shape_step_advantages
from mrpo.errors import UserError
from mrpo.steps import split_steps, token_spans

GOLDEN = Path(__file__).parents[1] / "golden"

# The listed span of this case ends before the token ".</thinking>", whose first character is the step's full stop. By
# the rule that every token overlapping a step belongs to it, which the other cases follow, the token is inside. The
# token advantages of the case follow its listed span, and shaping is tested with that.
SPANS_BY_RULE = {"Qwen3-VL tag, K = 1, invalid": [(1, 5)]}


def load(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((GOLDEN / f"{name}.json").read_text())["cases"]
    return cases


STEP_CASES = load("step_advantages") + load("step_advantages_edges")


@pytest.mark.parametrize("case", load("group_advantages"))
def test_group_advantages(case: dict[str, Any]) -> None:
    components = torch.tensor(case["components"], dtype=torch.float64)
    grpo = grpo_advantages(components.sum(dim=1), case["group_size"])
    gdpo = gdpo_advantages(components, [1.0, 1.0, 1.0], case["group_size"])
    assert grpo.tolist() == pytest.approx(case["grpo"], abs=1e-7)
    assert gdpo.tolist() == pytest.approx(case["gdpo"], abs=1e-7)


@pytest.mark.parametrize("case", [case for case in STEP_CASES if "text" in case])
def test_steps_and_token_spans(case: dict[str, Any]) -> None:
    steps = split_steps(case["text"], think_tag="thinking" if "<thinking>" in case["text"] else "think")
    assert [[step.start, step.end] for step in steps] == case["char_spans"]
    if "steps" in case:
        assert [step.text for step in steps] == case["steps"]
    expected = [tuple(span) for span in case["token_spans"]]
    if "note" in case and case["note"] in SPANS_BY_RULE:
        expected = SPANS_BY_RULE[case["note"]]
    assert token_spans(steps, [tuple(offset) for offset in case["token_offsets"]]) == expected


@pytest.mark.parametrize("case", STEP_CASES)
def test_step_advantages(case: dict[str, Any]) -> None:
    settings = {name: case[name] for name in ("base", "schedule") if name in case}
    num_tokens = case["num_tokens"] if "num_tokens" in case else len(case["token_offsets"])
    arguments = (case["advantage"], case["verdicts"], case["token_spans"], num_tokens, case["answer_reward"])
    if "error" in case:
        with pytest.raises(UserError, match="one for each"):
            shape_step_advantages(*arguments, **settings)
        return
    assert shape_step_advantages(*arguments, **settings) == pytest.approx(case["token_advantages"], abs=1e-9)
