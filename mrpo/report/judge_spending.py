"""What the judge cost a run, for the report."""

from __future__ import annotations

from pydantic import TypeAdapter

from mrpo.config import JudgeConfig
from mrpo.judge_bill import bill_text, bills_by_model, budget_text
from mrpo.report.charts import percent
from mrpo.report.load import RunData

TROUBLES = {
    "judge/cache_corrupt": "damaged",
    "judge/cache_changed": "of an image that changed meanwhile",
    "judge/cache_read_errors": "not readable",
    "judge/cache_write_errors": "not writable",
}


def judge_spending(run: RunData) -> list[tuple[str, str]]:
    """Requests, tokens and money of the whole run with its resumed parts, budgets, and rulings known from before."""
    facts: list[tuple[str, str]] = []
    if run.spending:
        judge = TypeAdapter(JudgeConfig).validate_python(run.config["judge"])
        facts.append(("paid to the judge, evaluations included", bill_text(run.spending, judge.prices)))
        facts += [(f"– {model}", text) for model, text in bills_by_model(run.spending, judge.prices)]
        budget = budget_text(run.spending, judge)
        if budget:
            facts.append(("the judge's budget", budget))
    hits, misses = run.total("judge/cache_hits"), run.total("judge/cache_misses")
    if hits + misses:
        facts.append(
            ("rulings known from before", f"{hits:,.0f} of {hits + misses:,.0f} ({percent(hits / (hits + misses))})")
        )
    found = {what: run.total(name) for name, what in TROUBLES.items()}
    if any(found.values()):
        told = ", ".join(f"{number:,.0f} {what}" for what, number in found.items() if number)
        facts.append(("kept rulings in trouble (asked for again)", told))
    return facts
