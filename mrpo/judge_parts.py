"""The judge as a part of a job: which one a configuration names, whether it is there, and its start.

A composition root beside `mrpo.parts`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mrpo.choices import LEXICAL_NOTICE, LOCAL_KINDS, Device, JudgeKind
from mrpo.config import Config, JudgeConfig
from mrpo.console import Console
from mrpo.faults import FaultLog
from mrpo.judge_canaries import CanaryJudge
from mrpo.judge_endpoints import endpoint_models
from mrpo.judge_model import own_judge
from mrpo.judge_spending import SpendingLedger
from mrpo.placement import Seat, placement_of
from mrpo.protocols import MeteredJudge

if TYPE_CHECKING:
    from judge.vllm_actors import VllmServers

logger = logging.getLogger(__name__)


def check_judge_endpoint(config: Config) -> None:
    """Whether there is a judge to call; asked before anything expensive.

    Raises:
        ConfigError: its settings are wrong.
        JudgeUnavailableError: it does not answer.
    """
    from judge.check import check_judge

    check_judge(config.judge)
    if config.judge.kind == JudgeKind.VLLM:
        own_judge(config.judge)


def check_judge_urls(config: JudgeConfig) -> None:
    """Check the URLs that are given, before any of them is written or asked.

    Raises:
        ConfigError: one is malformed or holds a user name or password.
    """
    from judge.check import check_urls

    check_urls(config)


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
    if config.kind not in (JudgeKind.OPENAI_COMPATIBLE, JudgeKind.VLLM):
        return JudgeIdentity(model=str(config.kind), step_rubric=None, answer_rubric=None)
    from judge.answer_rubric import ANSWER_RUBRIC_VERSION
    from judge.rubric import RUBRIC_VERSION

    model = own_judge(config).served_name if config.kind == JudgeKind.VLLM else ", ".join(endpoint_models(config))
    return JudgeIdentity(model=model, step_rubric=RUBRIC_VERSION, answer_rubric=ANSWER_RUBRIC_VERSION)


async def start_judge(
    config: Config,
    console: Console,
    stack: AsyncExitStack,
    ledger: SpendingLedger,
    on_event: Callable[[str], None] | None = None,
    *,
    fresh: bool = False,
    seats: Sequence[Seat] | None = None,
    log_dir: Path | None = None,
    faults: FaultLog | None = None,
) -> MeteredJudge | None:
    """Start the judge that the configuration names; `stack` ends it. None where there is none.

    Args:
        config: of the run.
        console: told what starts.
        stack: of the caller.
        ledger: of what the run spends on it, with what its earlier parts spent.
        on_event: told in a line when the judge goes down, when it is up again, when most of a budget is spent, and
            when too many canaries go wrong; None: these are logged.
        fresh: look up and keep no rulings and send no canaries, as a measurement of the judge itself must.
        seats: of the servers of `judge.kind=vllm`; None: they are reserved here.
        log_dir: of their logs; None: under the cache.
        faults: told of outages, and of actors that are lost and come back; None: nobody keeps a record.

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
        servers: VllmServers | None = None
        if config.judge.kind == JudgeKind.VLLM:
            servers = await _start_own_judge(config, stack, seats, log_dir or Path(config.cache_dir) / "logs", faults)
            endpoint = servers.judge_config(config.judge)
        else:
            endpoint = await asyncio.to_thread(_judge_endpoint, config, stack)
        cache = open_cache(endpoint, Path(config.cache_dir), bypass=fresh)
        if cache is not None:
            stack.callback(cache.close)
        pool = RayJudgePool(
            endpoint,
            ledger=ledger,
            rulings=cache,
            on_outage=on_event,
            on_warning=on_event,
            faults=faults,
            stall_timeout_s=config.watchdog.judge_s,
            log_dir=log_dir,
        )
        stack.callback(pool.close)
        if servers is not None:
            servers.on_moved = pool.set_url
        stack.enter_context(console.watching(pool.status))
        await pool.start()
    if fresh or config.judge.canary_share == 0:
        return pool
    watched = CanaryJudge(pool, config.judge, seed=config.seed, on_event=on_event or logger.warning)
    stack.push_async_callback(watched.close)
    return watched


async def _start_own_judge(
    config: Config,
    stack: AsyncExitStack,
    seats: Sequence[Seat] | None,
    log_dir: Path,
    faults: FaultLog | None,
) -> VllmServers:
    """Serve the model of `judge.kind=vllm`; `stack` ends the servers."""
    from judge.vllm_actors import VllmServers
    from judge.vllm_server import VllmSpec

    own, on_gpu = own_judge(config.judge), config.cluster.device == Device.GPU
    if seats is None and on_gpu:
        from mrpo.ray_placement import reserved

        layout = placement_of(config, learner=False, engines=False, judge=True)
        seats = (await stack.enter_async_context(reserved(layout))).judges
    specs = [
        VllmSpec(
            name=f"judge-server-{number}",
            model=str(own.folder),
            served_name=own.served_name,
            settings=config.judge.vllm,
            on_gpu=on_gpu,
            log_file=str((log_dir / f"judge-server-{number}.log").absolute()),
        )
        for number in range(config.judge.vllm.num_servers)
    ]
    servers = VllmServers(specs, seats or (), local=config.cluster.address is None, faults=faults)
    stack.push_async_callback(servers.close)
    await servers.start()
    return servers


def _judge_endpoint(config: Config, stack: AsyncExitStack) -> JudgeConfig:
    """The judge's address; a local judge's server is started for it."""
    from judge.local_server import LocalServer
    from mrpo.ray_placement import node_address

    if config.judge.kind not in LOCAL_KINDS:
        return config.judge
    # Judge actors may be on any node of a cluster.
    host = "127.0.0.1" if config.cluster.address is None else node_address()
    server = LocalServer(config.judge, seed=config.seed, host=host)
    stack.callback(server.close)
    return server.start().endpoint()
