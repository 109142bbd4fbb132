"""What the judge cost, in words and on the report's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mrpo.config import JudgeConfig, PriceConfig
from mrpo.errors import JudgeBudgetError
from mrpo.judge_bill import bill_text, bills_by_model, budget_text
from mrpo.judge_spending import SPENDING_FILE, UNKNOWN_MODEL, Spending, SpendingLedger
from mrpo.judge_stop import larger, require_some_left
from mrpo.report.facts import counts
from mrpo.report.load import load_run
from mrpo.report.render import write_report
from tests.unit.synthetic_run import make_run

PRICES = {"m": PriceConfig(prompt=1.0, completion=4.0)}
SPENT = {"m": Spending(requests=1040, prompt_tokens=600_000, cached_prompt_tokens=240_000, completion_tokens=150_000)}


def test_a_bill_says_requests_tokens_and_money() -> None:
    text = "1,040 requests, 750,000 tokens (80% prompt, 40% of that cached), cost 1.2"
    assert bill_text(SPENT, PRICES) == text
    assert bill_text(SPENT, {}) == text.removesuffix(", cost 1.2")
    assert bill_text({"m": Spending(requests=1)}, {}) == "1 request"
    other = {"n": Spending(requests=2, prompt_tokens=10, estimated_requests=2)}
    assert bill_text(SPENT | other, PRICES).endswith("those of 2 replies estimated, cost 1.2 without n")


def test_several_models_have_a_line_each() -> None:
    assert bills_by_model(SPENT, PRICES) == []
    lines = dict(bills_by_model(SPENT | {UNKNOWN_MODEL: Spending(requests=4)}, PRICES))
    assert lines["m"].startswith("1,040 requests")
    assert [text for name, text in lines.items() if "lost" in name] == ["4 requests, cost 0"]


@pytest.mark.parametrize(
    ("judge", "text"),
    [
        (JudgeConfig(), ""),
        (JudgeConfig(max_requests=2080), "50.0% of judge.max_requests=2080"),
        (
            JudgeConfig(max_tokens=1_000_000, max_cost=4.8, prices=PRICES),
            "75.0% of judge.max_tokens=1000000, 25.0% of judge.max_cost=4.8",
        ),
    ],
    ids=["none", "requests", "tokens and money"],
)
def test_budgets_by_the_share_that_is_spent(judge: JudgeConfig, text: str) -> None:
    assert budget_text(SPENT, judge) == text


def test_the_report_has_the_bill_and_what_was_known_from_before(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps_done=3)
    before = dict(counts(load_run(run.path)))
    assert not any("judge," in label or "known" in label for label in before)
    SpendingLedger(run.path / SPENDING_FILE).add(SPENT)
    run.log_metrics(4, {"judge/cache_hits": 6.0, "judge/cache_misses": 2.0, "judge/cache_corrupt": 1.0})
    facts = dict(counts(load_run(run.path)))
    assert facts["paid to the judge, evaluations included"] == bill_text(SPENT, {})
    assert facts["rulings known from before"] == "6 of 8 (75 %)"
    assert facts["kept rulings in trouble (asked for again)"] == "1 damaged"
    run.close()
    assert "1,040 requests" in write_report(run.path).read_text()


@pytest.mark.parametrize(
    ("limits", "setting"),
    [
        ({"max_requests": 1041}, None),
        ({"max_requests": 1040}, "judge.max_requests=1040: 1,040 spent"),
        ({"max_tokens": 751_000}, None),  # one request took 721 so far
        ({"max_tokens": 750_500}, "judge.max_tokens=750500: 750,000 spent"),
        ({"max_requests": 5000, "max_cost": 1.2005}, "judge.max_cost=1.2005: 1.2 spent"),
    ],
    ids=str,
)
def test_a_run_is_not_gone_on_with_where_nothing_is_left(limits: dict[str, Any], setting: str | None) -> None:
    judge = JudgeConfig(prices=PRICES, **limits)
    require_some_left({}, judge)
    if setting is None:
        require_some_left(SPENT, judge)
    else:
        with pytest.raises(JudgeBudgetError) as caught:
            require_some_left(SPENT, judge)
        assert setting in str(caught.value)
        assert larger(caught.value) == f"{setting.partition('=')[0]}=<more>"
