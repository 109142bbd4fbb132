"""What a job spent on its judge, in words: for the console, the report and the page of an evaluation. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from mrpo.config import JudgeConfig, PriceConfig
from mrpo.judge_prices import total_cost, unpriced
from mrpo.judge_spending import UNKNOWN_MODEL, Spending, sum_of


def bill_text(spent: Mapping[str, Spending], prices: Mapping[str, PriceConfig]) -> str:
    """`1,040 requests, 712,340 tokens (91 % prompt, 40 % of that cached), cost 0.71`."""
    total = sum_of(spent)
    parts = [f"{total.requests:,} request{'' if total.requests == 1 else 's'}"]
    if total.tokens:
        cached = total.cached_prompt_tokens
        share = f", {cached / total.prompt_tokens:.0%} of that cached" if cached else ""
        parts.append(f"{total.tokens:,} tokens ({total.prompt_tokens / total.tokens:.0%} prompt{share})")
    if total.estimated_requests:
        parts.append(f"those of {total.estimated_requests:,} replies estimated")
    cost = total_cost(spent, prices)
    if cost is not None and prices:
        without = unpriced(spent, prices)
        parts.append(f"cost {cost:.4g}" + (f" without {', '.join(without)}" if without else ""))
    return ", ".join(parts)


def bills_by_model(spent: Mapping[str, Spending], prices: Mapping[str, PriceConfig]) -> list[tuple[str, str]]:
    """A line a model where there are several; requests that no reply came to are under no model's name."""
    if len(spent) < 2:
        return []
    names = {UNKNOWN_MODEL: "not known: their judge actor was lost, or the call was given up"}
    return [(names.get(model, model), bill_text({model: item}, prices)) for model, item in spent.items()]


def budget_text(spent: Mapping[str, Spending], judge: JudgeConfig) -> str:
    """`10.4 % of judge.max_requests=1000`, of each budget that is set; empty where none is."""
    return ", ".join(f"{taken / limit:.1%} of {name}={limit:.12g}" for name, limit, taken in limits_of(spent, judge))


def limits_of(spent: Mapping[str, Spending], judge: JudgeConfig) -> list[tuple[str, float, float]]:
    """Setting, limit and what of it is spent, of each budget that is set."""
    total = sum_of(spent)
    limits = (
        ("judge.max_requests", judge.max_requests, total.requests),
        ("judge.max_tokens", judge.max_tokens, total.tokens),
        ("judge.max_cost", judge.max_cost, total_cost(spent, judge.prices) or 0.0),
    )
    return [(name, limit, taken) for name, limit, taken in limits if limit is not None]
