"""What the judge's tokens cost, by the price table `judge.prices`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from mrpo.choices import LOCAL_KINDS, JudgeKind
from mrpo.config import JudgeConfig, PriceConfig
from mrpo.errors import ConfigError
from mrpo.judge_endpoints import endpoint_models
from mrpo.judge_spending import Spending

MILLION = 1_000_000


def cost_of(spending: Spending, price: PriceConfig) -> float:
    """In the price table's currency; cached prompt tokens at their own price where there is one."""
    cached_price = price.prompt if price.cached_prompt is None else price.cached_prompt
    fresh = spending.prompt_tokens - spending.cached_prompt_tokens
    in_millionths = (
        fresh * price.prompt
        + spending.cached_prompt_tokens * cached_price
        + spending.completion_tokens * price.completion
    )
    return in_millionths / MILLION


def total_cost(spent: Mapping[str, Spending], prices: Mapping[str, PriceConfig]) -> float | None:
    """Of all models that have a price; None where none that took tokens has one."""
    costs = [cost_of(spent[model], prices[model]) for model in spent if model in prices]
    used = any(spending.tokens for spending in spent.values())
    return sum(costs) if costs or not used else None


def unpriced(spent: Mapping[str, Spending], prices: Mapping[str, PriceConfig]) -> list[str]:
    """Models that took tokens and have no price."""
    return [model for model, spending in spent.items() if spending.tokens and model not in prices]


def models_of(judge: JudgeConfig) -> list[str]:
    """The models that may be paid, each once; a local judge goes by the name of its kind.

    Raises:
        ConfigError: an endpoint is needed, and there is none.
    """
    if judge.kind in LOCAL_KINDS and not judge.model:
        return [str(judge.kind)]
    return endpoint_models(judge)


def price_example(model: str) -> str:
    """A price as an argument, quoted for a shell, also within ARGS="…"."""
    return f"'judge.prices={{{model}:{{prompt:0.4,completion:1.6,cached_prompt:0.1}}}}'"


def require_prices(judge: JudgeConfig) -> None:
    """A budget of money needs to know what each model costs.

    Raises:
        ConfigError: it does not of one.
    """
    if judge.max_cost is None or judge.kind == JudgeKind.NONE:
        return
    if judge.kind == JudgeKind.VLLM and not judge.endpoints:
        raise ConfigError(
            f"judge.max_cost={judge.max_cost:.12g}: a judge on your own GPUs (judge.kind=vllm) has no price per token; "
            "bound it by judge.max_tokens or judge.max_requests"
        )
    for model in models_of(judge):
        if model not in judge.prices:
            known = f" (prices are set for: {', '.join(sorted(judge.prices))})" if judge.prices else ""
            raise ConfigError(
                f"judge.max_cost={judge.max_cost:.12g} needs a price of {model} in judge.prices{known}; set e.g. "
                f"{price_example(model)}, per million tokens, or leave judge.max_cost out"
            )
