"""What calls may spend and what they spent: budget, prices, the ledger, and what is told of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields

from judge.accounting import RequestUsage
from judge.budget import UNLIMITED, Amounts, Budget
from judge.prompts import prompt_of
from judge.request import estimate_tokens
from mrpo.config import JudgeConfig
from mrpo.judge_endpoints import endpoint_models
from mrpo.judge_prices import cost_of, require_prices, total_cost, unpriced
from mrpo.judge_spending import UNKNOWN_MODEL, Spending, SpendingLedger
from mrpo.types import AnswerRequest, JudgeRequest

logger = logging.getLogger(__name__)
SETTINGS = {"requests": "judge.max_requests", "tokens": "judge.max_tokens", "cost": "judge.max_cost"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What one call may spend."""

    name: int
    requests: int  # 0: nothing, see `refusal`
    prompt_tokens: int  # estimated, of one request, uncorrected
    reply_tokens: int
    refusal: str = ""  # why nothing


class Accountant:
    """One a pool. Use it from one event loop."""

    def __init__(
        self, config: JudgeConfig, ledger: SpendingLedger, *, on_warning: Callable[[str], None] | None = None
    ) -> None:
        """Start from what the ledger remembers.

        Args:
            config: of the judge; its endpoints must be set.
            ledger: of the run.
            on_warning: told in a line when most of a budget is spent; None: it is logged.

        Raises:
            ConfigError: money is bounded and a model has no price.
        """
        require_prices(config)
        self._config = config
        self._models = endpoint_models(config)
        self._ledger = ledger
        self._on_warning = on_warning or logger.warning
        limits = Amounts(
            requests=UNLIMITED if config.max_requests is None else config.max_requests,
            tokens=UNLIMITED if config.max_tokens is None else config.max_tokens,
            cost=UNLIMITED if config.max_cost is None else config.max_cost,
        )
        self._budget = Budget(limits, spent=self._amounts(ledger.spent))
        self._estimated = self._counted = 0  # tokens of requests whose usage was named: by us, by the endpoints
        self._told = self._budget.spent  # when metrics were last taken
        self._warned: set[str] = set()
        self._said_no_usage = self._said_unwritable = False

    @property
    def spent(self) -> Spending:
        """By the whole run, its earlier parts included."""
        return self._ledger.total

    async def lease(self, request: JudgeRequest | AnswerRequest, wanted: int) -> Lease:
        """Room for up to `wanted` requests of a call; it waits for others where it may come free."""
        self._warn()
        prompt = prompt_of(request)
        total = estimate_tokens(prompt, send_image=self._config.send_image)
        prompt_tokens = total - prompt.reply_tokens
        each = self._each(prompt_tokens, prompt.reply_tokens)
        granted, name = await self._budget.lease(wanted, each)
        refusal = "" if granted else self._refusal(each)
        return Lease(
            name=name,
            requests=granted,
            prompt_tokens=prompt_tokens,
            reply_tokens=prompt.reply_tokens,
            refusal=refusal,
        )

    def settle(self, lease: Lease, requests: Sequence[RequestUsage], *, lost: int = 0) -> None:
        """End a lease.

        Args:
            lease: from `lease`; it granted something.
            requests: that were made.
            lost: requests that may have been made besides, by an actor that was lost.
        """
        spent = self._spending(requests, lease)
        if lost:
            spent[UNKNOWN_MODEL] = spent.get(UNKNOWN_MODEL, Spending()) + Spending(requests=lost)
        self._budget.settle(lease.name, self._amounts(spent))
        self._record(spent)

    def take_metrics(self) -> dict[str, float]:
        """Spent since this was asked last, and the smallest share of a budget that is left; nothing where unknown."""
        now = self._budget.spent
        metrics = {"judge/tokens": now.tokens - self._told.tokens}
        if total_cost(self._ledger.spent, self._config.prices) is not None and self._config.prices:
            metrics["judge/cost"] = now.cost - self._told.cost
        self._told = now
        left = min(astuple(self._budget.shares_left()))
        return metrics if left == UNLIMITED else metrics | {"judge/budget_left_share": left}

    def _each(self, prompt_tokens: int, reply_tokens: int) -> Amounts:
        """What one request may take; estimates are scaled by what replies have shown, but never down."""
        scale = max(1.0, self._counted / self._estimated) if self._estimated else 1.0
        one = Spending(prompt_tokens=round(prompt_tokens * scale), completion_tokens=round(reply_tokens * scale))
        prices = (self._config.prices[model] for model in self._models if model in self._config.prices)
        return Amounts(requests=1, tokens=one.tokens, cost=max((cost_of(one, price) for price in prices), default=0.0))

    def _spending(self, requests: Sequence[RequestUsage], lease: Lease) -> dict[str, Spending]:
        """By model. Where a reply names no usage, an estimate stands for it: else a budget would never end."""
        named = [item for item in requests if item.prompt_tokens is not None or item.completion_tokens is not None]
        spent: dict[str, Spending] = {}
        for item in requests:
            spent[item.model] = spent.get(item.model, Spending()) + Spending(
                requests=1,
                prompt_tokens=item.prompt_tokens or 0,
                cached_prompt_tokens=min(item.cached_prompt_tokens or 0, item.prompt_tokens or 0),
                completion_tokens=item.completion_tokens or 0,
            )
        if named:
            self._estimated += len(named) * (lease.prompt_tokens + lease.reply_tokens)
            self._counted += sum((item.prompt_tokens or 0) + (item.completion_tokens or 0) for item in named)
        for item in (item for item in requests if item.replied and item not in named):
            spent[item.model] += Spending(
                prompt_tokens=lease.prompt_tokens, completion_tokens=lease.reply_tokens, estimated_requests=1
            )
            if not self._said_no_usage:
                self._said_no_usage = True
                logger.warning("the judge's replies (model %s) name no usage: its tokens are estimated", item.model)
        return spent

    def _amounts(self, spent: dict[str, Spending]) -> Amounts:
        prices = self._config.prices
        return Amounts(
            requests=sum(item.requests for item in spent.values()),
            tokens=sum(item.tokens for item in spent.values()),
            cost=sum(cost_of(item, prices[model]) for model, item in spent.items() if model in prices),
        )

    def _record(self, spent: dict[str, Spending]) -> None:
        try:
            self._ledger.add(spent)
        except OSError as error:
            if not self._said_unwritable:
                self._said_unwritable = True
                logger.warning("what the judge costs cannot be put on record (%s): a resumed run will not know", error)
        self._warn()

    def _warn(self) -> None:
        """Say once of each budget that most of it is spent, and once which model has no price."""
        left = self._budget.shares_left()
        for item in fields(Amounts):
            share = getattr(left, item.name)
            if share <= 1.0 - self._config.warn_share and item.name not in self._warned:
                self._warned.add(item.name)
                spent, limit = getattr(self._budget.spent, item.name), getattr(self._budget.limits, item.name)
                self._on_warning(
                    f"judge budget: {_number(spent)} of {SETTINGS[item.name]}={limit:.12g} is spent; at the end of it "
                    "the run stops with a checkpoint"
                )
        if self._config.prices and "prices" not in self._warned:
            without = unpriced(self._ledger.spent, self._config.prices)
            if without:
                self._warned.add("prices")
                self._on_warning(f"judge.prices has no {', '.join(without)}: judge/cost leaves their tokens out")

    def _refusal(self, each: Amounts) -> str:
        """Which budget has no room for another request."""
        parts = []
        for item in fields(Amounts):
            limit = getattr(self._budget.limits, item.name)
            spent, one = getattr(self._budget.spent, item.name), getattr(each, item.name)
            if spent >= limit or limit - spent < one * (1 - 1e-9):
                more = "" if spent >= limit else f", and a request may take {_number(one)}"
                parts.append(f"{SETTINGS[item.name]}={limit:.12g}: {_number(spent)} spent{more}")
        return f"the run's budget for the judge is spent ({'; '.join(parts)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.4g}"
