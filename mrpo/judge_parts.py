"""The judge as a part of a job: which one a configuration names, whether it is there, and its start.

A composition root beside `mrpo.parts`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mrpo.choices import LEXICAL_NOTICE, JudgeKind
from mrpo.config import Config, JudgeConfig
from mrpo.console import Console
from mrpo.judge_endpoints import endpoints_of
from mrpo.judge_spending import SpendingLedger

if TYPE_CHECKING:
    from judge.pool import RayJudgePool


def check_judge_endpoint(config: Config) -> None:
    """Whether there is a judge to call; asked before anything expensive.

    Raises:
        ConfigError: its settings are wrong.
        JudgeUnavailableError: it does not answer.
    """
    from judge.check import check_judge

    check_judge(config.judge)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeIdentity:
    """Which judge ruled, by which rubrics; verdicts of two identities are not comparable."""

    model: str
    step_rubric: str | None  # version; None: it goes by rules of its own
    answer_rubric: str | None


def judge_identity(config: JudgeConfig) -> JudgeIdentity | None:
    """The judge of a run; None where there is none."""
    if config.kind == JudgeKind.NONE:
        return None
    if config.kind != JudgeKind.OPENAI_COMPATIBLE:
        return JudgeIdentity(model=str(config.kind), step_rubric=None, answer_rubric=None)
    from judge.answer_rubric import ANSWER_RUBRIC_VERSION
    from judge.rubric import RUBRIC_VERSION

    model = ", ".join(dict.fromkeys(endpoint.model for endpoint in endpoints_of(config)))
    return JudgeIdentity(model=model, step_rubric=RUBRIC_VERSION, answer_rubric=ANSWER_RUBRIC_VERSION)


async def start_judge(
    config: Config,
    console: Console,
    stack: AsyncExitStack,
    ledger: SpendingLedger,
    on_event: Callable[[str], None] | None = None,
    *,
    fresh: bool = False,
) -> RayJudgePool | None:
    """Start the judge that the configuration names; `stack` ends it. None where there is none.

    Args:
        config: of the run.
        console: told what starts.
        stack: of the caller.
        ledger: of what the run spends on it, with what its earlier parts spent.
        on_event: told in a line when the judge goes down, when it is up again, and when most of a budget is spent;
            None: these are logged.
        fresh: look up and keep no rulings, as a measurement of the judge itself must.

    Raises:
        JudgeUnavailableError: a judge that is started here did not come up.
    """
    if config.judge.kind == JudgeKind.NONE:
        console.note("no judge: rewards are answer-only, no step is ruled on")
        return None
    if config.judge.kind == JudgeKind.LEXICAL:
        console.note(LEXICAL_NOTICE)
    from judge.cache import open_cache
    from judge.pool import RayJudgePool

    with console.stage(f"judge ({config.judge.kind})"):
        endpoint = await asyncio.to_thread(_judge_endpoint, config, stack)
        cache = open_cache(endpoint, Path(config.cache_dir), bypass=fresh)
        if cache is not None:
            stack.callback(cache.close)
        pool = RayJudgePool(endpoint, ledger=ledger, rulings=cache, on_outage=on_event, on_warning=on_event)
        stack.callback(pool.close)
        await pool.start()
    return pool


def _judge_endpoint(config: Config, stack: AsyncExitStack) -> JudgeConfig:
    """The judge's address; a local judge's server is started for it."""
    from judge.local_server import LOCAL_KINDS, LocalServer

    if config.judge.kind not in LOCAL_KINDS:
        return config.judge
    server = LocalServer(config.judge, seed=config.seed)
    stack.callback(server.close)
    return server.start().endpoint()
