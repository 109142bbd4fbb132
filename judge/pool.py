"""The judge actors of a run, seen as one judge."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from judge.accountant import Accountant, Lease
from judge.accounting import LookedUp, OnRequest, RequestUsage, Rulings, Served
from judge.actor_link import ActorLost
from judge.actors import JudgeActors, NoActor
from judge.api_key import key_of, key_source
from judge.availability import Event, Opened
from judge.circuits import Circuits
from judge.client import too_long
from judge.ruling_key import rubric_version
from judge.silence import Silence
from mrpo.choices import OutagePolicy
from mrpo.config import JudgeConfig, WatchdogConfig
from mrpo.errors import ConfigError
from mrpo.faults import FaultLog
from mrpo.judge_endpoints import endpoints_of
from mrpo.judge_spending import Spending, SpendingLedger
from mrpo.types import (
    AnswerJudgement,
    AnswerRequest,
    FailureReason,
    JudgeDepths,
    JudgeFailure,
    Judgement,
    JudgeRequest,
    Verdicts,
)

Made = TypeVar("Made", Judgement, AnswerJudgement)

MAX_LOSSES = 3  # actors that may die with a call before it is a failure: it might be what kills them
OUT_PAUSE_S = 0.05  # an actor may know of an outage before the pool does


@dataclass(slots=True)
class Tally:
    """How the calls of a pool ended; every call that was begun and is not open ended in exactly one way."""

    begun: int = 0
    known: int = 0  # rulings from before
    ruled: int = 0
    failed: Counter[FailureReason] = field(default_factory=Counter)
    broken: int = 0  # given up by the caller, or the image cannot be read

    @property
    def open(self) -> int:
        """Calls under way."""
        return self.begun - self.known - self.ruled - self.failed.total() - self.broken


@dataclass(slots=True)
class Account:
    """What all dispatches of one call took together."""

    started_s: float
    requests: list[RequestUsage] = field(default_factory=list)
    attempts: int = 0  # with those that a lost actor may have made


class RayJudgePool:
    """A `mrpo.protocols.JudgePool` over Ray actors. Ray must be running; use it from one event loop."""

    def __init__(
        self,
        config: JudgeConfig,
        *,
        ledger: SpendingLedger | None = None,
        rulings: Rulings | None = None,
        on_request: OnRequest | None = None,
        on_outage: Callable[[str], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
        faults: FaultLog | None = None,
        stall_timeout_s: float = WatchdogConfig().judge_s,
        log_dir: Path | None = None,
    ) -> None:
        """Create the actors; they come up while other parts start.

        Args:
            config: endpoints must be set; a local judge's are set by `LocalServer.endpoint`.
            ledger: of what the run spends, with what its earlier part spent; None: this pool is a run of its own.
            rulings: asked before each call, told of each ruling.
            on_request: told of every HTTP request that is known of, once its call has ended.
            on_outage: told in a line when an outage begins and when it ends; None: these are logged.
            on_warning: told in a line when most of a budget is spent; None: it is logged.
            faults: told of outages, and of actors that are lost and come back; None: nobody keeps a record.
            stall_timeout_s: for which none of an actor's calls may end, though it has some.
            log_dir: existing folder for the stacks of an actor that is stuck; None: they are only quoted.

        Raises:
            ConfigError: there is no endpoint, there are more actors than calls in flight, or a budget of money and no
                price.
        """
        self._endpoints = endpoints_of(config)
        self._config = config
        self._rulings = rulings
        self._on_request = on_request
        self._accountant = Accountant(config, ledger or SpendingLedger(None), on_warning=on_warning)
        faults = faults or FaultLog(None)
        self._actors = JudgeActors(
            config,
            on_event=self._on_event,
            open_now=lambda: self._circuits.open,
            admits=lambda keys: self._missing_key([keys]),
            faults=faults,
            stall_timeout_s=stall_timeout_s,
            log_dir=log_dir,
        )
        names = [f"{endpoint.model} at {endpoint.url}" for endpoint in self._endpoints]
        self._circuits = Circuits(names, config, tell=self._actors.set_open, on_event=on_outage, faults=faults)
        self._silence = Silence(config, self._circuits)
        self.tally = Tally()

    @property
    def spent(self) -> Spending:
        """By the run so far, retries included, its earlier parts too."""
        return self._accountant.spent

    def take_metrics(self) -> dict[str, float]:
        """What the pool measured since this was asked last; what did not happen is left out."""
        outage_s = self._circuits.take_outage_s()
        kept = self._rulings.take_metrics() if self._rulings is not None else {}
        return self._accountant.take_metrics() | kept | ({"judge/outage_s": outage_s} if outage_s else {})

    def depths(self) -> JudgeDepths:
        """Calls under way: those with an actor that has a slot for them, and all others."""
        in_flight = self._actors.num_in_flight
        return JudgeDepths(waiting=max(0, self.tally.open - in_flight), in_flight=in_flight)

    def status(self) -> str | None:
        """In a line, what calls wait for: an endpoint, or an actor; None while they are served."""
        return self._circuits.status() or self._actors.status()

    async def start(self) -> None:
        """Wait until an actor is up; others join when the cluster has room for them.

        Raises:
            ConfigError: an API key is there, but not on an actor's node.
            ResourceError: no actor came up in time.
        """
        missing = self._missing_key(await self._actors.start())
        if missing is not None:
            raise ConfigError(missing)

    def set_url(self, endpoint: int, url: str) -> None:
        """Ask an endpoint at another base URL from now on: a server of the run's own may come up on another node."""
        self._circuits.rename(endpoint, f"{self._endpoints[endpoint].model} at {url}")
        self._silence.set_url(endpoint, url)
        self._actors.set_url(endpoint, url)

    def _missing_key(self, found: Sequence[Sequence[bool]]) -> str | None:
        """What is wrong where actors lack a key that is here; `found` has a row an actor."""
        for index, endpoint in enumerate(self._endpoints):
            source = key_source(self._config, endpoint)
            missing = [keys[index] for keys in found].count(False)
            if missing and key_of(self._config, endpoint) is not None:
                return (
                    f"{source} is set here but not for {missing} of {len(found)} judge actors; "
                    "export it on every node before `ray start` (keys are never sent through Ray)"
                )
        return None

    async def judge(self, request: JudgeRequest) -> Judgement:
        """One ruling or one `JudgeFailure`; see `mrpo.protocols.JudgePool`.

        Raises:
            DataError: the image cannot be read.
        """
        return await self._rule(request, Judgement)

    async def judge_afresh(self, request: JudgeRequest) -> Judgement:
        """As `judge`, with no ruling looked up or kept.

        Raises:
            DataError: the image cannot be read.
        """
        return await self._rule(request, Judgement, fresh=True)

    async def judge_answer(self, request: AnswerRequest) -> AnswerJudgement:
        """Whether an answer is correct, or one `JudgeFailure`; see `mrpo.protocols.JudgePool`.

        Raises:
            DataError: the image cannot be read.
        """
        return await self._rule(request, AnswerJudgement)

    async def _rule(self, request: JudgeRequest | AnswerRequest, made: type[Made], *, fresh: bool = False) -> Made:
        """One ruling, known from before or by a call, or one failure."""
        self.tally.begun += 1
        try:
            return await self._find_or_call(request, made, None if fresh else self._rulings)
        except BaseException:
            self.tally.broken += 1
            raise

    async def _find_or_call(
        self, request: JudgeRequest | AnswerRequest, made: type[Made], rulings: Rulings | None
    ) -> Made:
        account = Account(started_s=time.time())
        rubric = rubric_version(request)
        looked_up = await rulings.find(request) if rulings is not None else LookedUp()
        known = looked_up.known
        if known is not None:
            self.tally.known += 1
            return replace(_made(made, request.key, known.ruling, account), model=known.model, rubric=rubric)
        served = await self._call(request, made, account)
        judgement = served.judgement
        assert isinstance(judgement, made)
        if isinstance(judgement.outcome, JudgeFailure):
            self.tally.failed[judgement.outcome.reason] += 1
        else:
            assert served.model is not None
            key = looked_up.keys.get(served.model)
            if rulings is not None and key is not None:
                await rulings.keep(request, judgement.outcome, model=served.model, key=key)
            self.tally.ruled += 1
        return replace(
            judgement,
            started_s=account.started_s,
            attempts=account.attempts,
            prompt_tokens=sum(item.prompt_tokens or 0 for item in account.requests),
            completion_tokens=sum(item.completion_tokens or 0 for item in account.requests),
            model=served.model,
            rubric=rubric,
        )

    async def _call(self, request: JudgeRequest | AnswerRequest, made: type[Made], account: Account) -> Served:
        """Dispatch until there is a ruling or a failure that is the call's own, through outages and lost actors."""
        unsent = too_long(request, self._config)
        if unsent is not None:  # it needs neither an endpoint nor a budget
            return unsent
        losses, wanted = 0, self._config.max_attempts
        while True:
            admission = await self._circuits.admit()
            if admission.refusal is not None:
                return _failed(made, request.key, FailureReason.TRANSPORT, admission.refusal, account)
            try:
                served = await self._within_budget(request, made, admission.trial, wanted, account)
            except NoActor as error:
                return _failed(made, request.key, FailureReason.TRANSPORT, str(error), account)
            except ActorLost as error:
                losses += 1
                if losses >= MAX_LOSSES:
                    return _failed(made, request.key, FailureReason.TRANSPORT, str(error), account)
                continue
            if not served.out:
                wanted -= len(served.requests)
                if served.more_after_s is not None and wanted > 0:
                    # It was the budget that allowed no further request: there may be one by now, or it is spent.
                    await asyncio.sleep(served.more_after_s)
                    continue
                if not await self._silence.is_theirs(served):
                    return served
            elif self._config.on_outage == OutagePolicy.FAIL:
                return served
            wanted = self._config.max_attempts
            if not self._circuits.is_out:
                await asyncio.sleep(OUT_PAUSE_S)

    async def _within_budget(
        self, request: JudgeRequest | AnswerRequest, made: type[Made], trial: int | None, wanted: int, account: Account
    ) -> Served:
        """One dispatch of up to `wanted` requests, with what it may spend and what it spent."""
        served: Served | None = None
        try:
            lease = await self._accountant.lease(request, wanted)
            if lease.requests == 0:
                return _failed(made, request.key, FailureReason.BUDGET, lease.refusal, account)
            served = await self._dispatch(request, trial, lease, account)
            return served
        finally:
            self._circuits.tried(trial, passed=None if served is None else served.trial_passed)

    async def _dispatch(
        self, request: JudgeRequest | AnswerRequest, trial: int | None, lease: Lease, account: Account
    ) -> Served:
        """Have an actor make the call, and settle the lease, whatever comes of it."""

        def on_given_up(requests: Sequence[RequestUsage] | None) -> None:
            self._accountant.settle(lease, requests or (), lost=lease.requests if requests is None else 0)
            self._tell(requests or ())

        try:
            served = await self._actors.rule(request, lease.requests, trial, on_given_up)
        except asyncio.CancelledError:
            raise  # the actor tells what it had sent
        except NoActor:
            self._accountant.settle(lease, ())
            raise
        except BaseException:
            # A lost actor may have made every request that it was allowed.
            self._accountant.settle(lease, (), lost=lease.requests)
            account.attempts += lease.requests
            raise
        self._accountant.settle(lease, served.requests)
        account.attempts += len(served.requests)
        account.requests += served.requests
        self._tell(served.requests)
        return served

    def _tell(self, requests: Sequence[RequestUsage]) -> None:
        if self._on_request is not None:
            for usage in requests:
                self._on_request(usage)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Opened):
            self._circuits.opened(event.endpoint, event.reason, event.for_s)

    def close(self) -> None:
        """End the actors. Calls in flight end as `transport` failures."""
        self._circuits.close()
        self._actors.close()


def _made(made: type[Made], key: str, outcome: Verdicts | bool | JudgeFailure, account: Account) -> Made:
    """A judgement that no request of now was made for."""
    fitting: Any = outcome  # which of both rulings it is follows from `made`
    return made(key=key, outcome=fitting, started_s=account.started_s, ended_s=time.time(), attempts=account.attempts)


def _failed(made: type[Made], key: str, reason: FailureReason, detail: str, account: Account) -> Served:
    return Served(judgement=_made(made, key, JudgeFailure(reason=reason, detail=detail), account), requests=())
