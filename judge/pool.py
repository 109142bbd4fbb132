"""The judge actors of a run, seen as one judge."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from judge.accounting import OnRequest, Rulings, Served
from judge.api_key import read_api_key
from judge.budget import RequestBudget
from judge.limiter import RateLimiter, RemoteLimiter, split_concurrency
from judge.worker import JudgeWorker
from mrpo.config import JudgeConfig
from mrpo.errors import ConfigError, MRPOError
from mrpo.types import AnswerJudgement, AnswerRequest, FailureReason, JudgeFailure, Judgement, JudgeRequest, Verdicts

logger = logging.getLogger(__name__)
Made = TypeVar("Made", Judgement, AnswerJudgement)

ACTOR_CPUS = 0  # judge actors wait on the network, and must find a place where engines and learner hold every core
REVIVE_PAUSE_S = 0.5  # between looks at an actor that Ray is restarting


class RayJudgePool:
    """A `mrpo.protocols.JudgePool` over Ray actors. Ray must be running; use it from one event loop."""

    def __init__(
        self,
        config: JudgeConfig,
        *,
        requests_spent: int = 0,
        rulings: Rulings | None = None,
        on_request: OnRequest | None = None,
    ) -> None:
        """Create the actors; they come up while other parts start.

        Args:
            config: `url` and `model` must be set; the oracle's are set by `OracleServer.endpoint`.
            requests_spent: HTTP requests of the run's earlier part, when it is resumed with a budget.
            rulings: asked before each call, told of each ruling.
            on_request: told of every HTTP request, after its call has ended.

        Raises:
            ConfigError: `url` or `model` is missing, or there are more actors than calls in flight.
        """
        if config.url is None or config.model is None:
            raise ConfigError(f"a judge pool needs judge.url and judge.model; got {config.url!r} and {config.model!r}")
        self._config = config
        self._rulings = rulings
        self._on_request = on_request
        self._budget = RequestBudget(config.max_requests, spent=requests_spent)
        name = f"judge-{secrets.token_hex(3)}"  # several pools may share a cluster
        self._limiter_actor = None
        if config.requests_per_minute is not None or config.tokens_per_minute is not None:
            self._limiter_actor = _spawn(
                RateLimiter,
                f"{name}-limiter",
                retries=-1,  # a booking made twice costs a little time; a lost one would fail a call
                requests_per_minute=config.requests_per_minute,
                tokens_per_minute=config.tokens_per_minute,
            )
        limiter = RemoteLimiter(self._limiter_actor) if self._limiter_actor is not None else None
        self._actors = [
            _spawn(JudgeWorker, f"{name}-{index}", config, retries=0, concurrency=share, limiter=limiter)
            for index, share in enumerate(split_concurrency(config))
        ]
        self._in_flight = [0] * len(self._actors)
        self._up = set(range(len(self._actors)))
        self._some_up = asyncio.Event()
        self._some_up.set()
        self._revivals: set[asyncio.Task[None]] = set()

    @property
    def requests_spent(self) -> int:
        """HTTP requests made so far, retries included, those of a resumed run's earlier part too."""
        return self._budget.spent

    async def start(self) -> None:
        """Wait until every actor is up.

        Raises:
            ConfigError: the API key is set here but not on an actor's node.
        """
        with_key = await asyncio.gather(*(actor.has_key.remote() for actor in self._actors))
        variable = self._config.api_key_env
        if read_api_key(variable) is not None and not all(with_key):
            raise ConfigError(
                f"{variable} is set here but not for {with_key.count(False)} of {len(with_key)} judge actors; "
                "export it on every node before `ray start` (keys are never sent through Ray)"
            )

    async def judge(self, request: JudgeRequest) -> Judgement:
        """One ruling or one `JudgeFailure`; see `mrpo.protocols.JudgePool`.

        Raises:
            DataError: the image cannot be read.
        """
        return await self._rule(request, Judgement)

    async def judge_answer(self, request: AnswerRequest) -> AnswerJudgement:
        """Whether an answer is correct, or one `JudgeFailure`; see `mrpo.protocols.JudgePool`.

        Raises:
            DataError: the image cannot be read.
        """
        return await self._rule(request, AnswerJudgement)

    async def _rule(self, request: JudgeRequest | AnswerRequest, made: type[Made]) -> Made:
        """One ruling, known from before or by a call within the budget."""
        started_s = time.time()
        known = await self._rulings.find(request) if self._rulings is not None else None
        if known is not None:
            return _made(made, request.key, known, started_s)
        served = await self._call(request, made, started_s)
        judgement = served.judgement
        assert isinstance(judgement, made)
        if self._rulings is not None and not isinstance(judgement.outcome, JudgeFailure):
            assert served.model is not None
            await self._rulings.keep(request, judgement.outcome, model=served.model)
        return judgement

    async def _call(self, request: JudgeRequest | AnswerRequest, made: type[Made], started_s: float) -> Served:
        granted = await self._budget.lease(self._config.max_attempts)
        if granted == 0:
            detail = f"the run's budget of judge.max_requests={self._config.max_requests} HTTP requests is spent"
            return _failed(made, request.key, FailureReason.BUDGET, detail, started_s, attempts=0)
        used = granted  # until it is known better: a lost actor may have made every attempt
        try:
            served = await self._dispatch(request, made, granted, started_s)
            used = served.judgement.attempts
            if self._on_request is not None:
                for usage in served.requests:
                    self._on_request(usage)
            return served
        finally:
            await asyncio.shield(self._budget.settle(granted, used))

    async def _dispatch(
        self, request: JudgeRequest | AnswerRequest, made: type[Made], max_attempts: int, started_s: float
    ) -> Served:
        """Hand the call to the actor with the fewest in flight."""
        try:
            async with asyncio.timeout(self._config.deadline_s):
                await self._some_up.wait()
        except TimeoutError:
            detail = f"no judge actor came up within judge.deadline_s={self._config.deadline_s:g}"
            return _failed(made, request.key, FailureReason.TRANSPORT, detail, started_s, attempts=0)
        index = min(self._up, key=lambda i: self._in_flight[i])
        self._in_flight[index] += 1
        call = self._actors[index].rule.remote(request, max_attempts)
        try:
            served: Served = await call
            return served
        except asyncio.CancelledError:
            ray.cancel(call)
            raise
        except RayActorError as error:
            self._set_aside(index)
            detail = f"judge actor {index} was lost: {type(error).__name__}"
            logger.warning("%s, while it judged %s", detail, request.key)
            return _failed(made, request.key, FailureReason.TRANSPORT, detail, started_s, attempts=max_attempts)
        except RayTaskError as error:
            # Ray's wrapper carries a remote traceback; an error made for users reaches them as it was raised.
            if isinstance(error.cause, MRPOError):
                raise error.cause from None
            raise
        finally:
            self._in_flight[index] -= 1

    def _set_aside(self, index: int) -> None:
        """Give a lost actor no calls until it answers again: it would fail them at once and so attract them all."""
        if index not in self._up:
            return
        self._up.discard(index)
        if not self._up:
            self._some_up.clear()
        task = asyncio.get_running_loop().create_task(self._revive(index))
        self._revivals.add(task)
        task.add_done_callback(self._revivals.discard)

    async def _revive(self, index: int) -> None:
        while True:
            try:
                await self._actors[index].has_key.remote()
            except RayActorError:
                await asyncio.sleep(REVIVE_PAUSE_S)
            else:
                break
        self._up.add(index)
        self._some_up.set()

    def close(self) -> None:
        """End the actors. Calls in flight end as `transport` failures."""
        for task in self._revivals:
            task.cancel()
        for actor in self._actors:
            ray.kill(actor)
        if self._limiter_actor is not None:
            ray.kill(self._limiter_actor)


def _spawn(cls: type, name: str, *args: Any, retries: int, **kwargs: Any) -> Any:
    """The one place where plain classes become actors. `retries`: of a call whose actor died, -1 for ever."""
    actor_class: Any = ray.remote(cls).options(
        name=name,
        num_cpus=ACTOR_CPUS,
        max_restarts=-1,
        max_task_retries=retries,
        max_concurrency=100_000,  # the client's own bound decides; calls beyond it wait inside the actor
    )
    return actor_class.remote(*args, **kwargs)


def _made(made: type[Made], key: str, outcome: Verdicts | bool, started_s: float) -> Made:
    """A ruling that no request was made for."""
    ruling: Any = outcome  # which of both follows from `made`
    return made(key=key, outcome=ruling, started_s=started_s, ended_s=time.time(), attempts=0)


def _failed(
    made: type[Made], key: str, reason: FailureReason, detail: str, started_s: float, *, attempts: int
) -> Served:
    failure = JudgeFailure(reason=reason, detail=detail)
    judgement = made(key=key, outcome=failure, started_s=started_s, ended_s=time.time(), attempts=attempts)
    return Served(judgement=judgement, requests=())
