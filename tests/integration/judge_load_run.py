"""Many calls through a pool of actors against a faulty server, with both sides' counts."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

import psutil
from judge_server import judge_request

from judge.accounting import RequestUsage
from judge.pool import RayJudgePool, Tally
from mrpo.config import JudgeConfig
from mrpo.types import Judgement
from tests.integration.judge_load_server import Faults, LoadServer, Seen

ACTORS = ("ray::JudgeWorker", "ray::RateLimiter")


@dataclass(kw_only=True)
class Load:
    """What came of it."""

    judgements: list[Judgement]
    tally: Tally
    requests_spent: int
    told: Counter[int]  # requests told of, by endpoint
    seen: Seen
    wall_s: float
    worker_cpu_s: float  # of all judge actors
    driver_cpu_s: float  # of this process, where every call starts

    @property
    def utilisation(self) -> float:
        """Share of the slots' time in which the server had a request: 1 is all that concurrency allows."""
        return self.seen.busy_s / (self.concurrency * self.wall_s)

    concurrency: int = field(default=0)


def run_load(image: str, number: int, faults: Faults, config: JudgeConfig) -> Load:
    """Judge `number` completions at once; `config` without endpoint. Ray must be running."""
    with LoadServer(faults) as server:
        endpoint = JudgeConfig(**{**_fields(config), "url": server.url, "model": "m"})
        return asyncio.run(_run(image, number, endpoint, server))


def _fields(config: JudgeConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in JudgeConfig.__dataclass_fields__}


async def _run(image: str, number: int, config: JudgeConfig, server: LoadServer) -> Load:
    told: Counter[int] = Counter()

    def on_request(usage: RequestUsage) -> None:
        told[usage.endpoint] += 1

    pool = RayJudgePool(config, on_request=on_request)
    try:
        await pool.start()
        workers = judge_workers()
        cpu_before, own_before, began_s = _cpu_s(workers), time.process_time(), time.monotonic()
        calls = [pool.judge(judge_request(image, key=str(index))) for index in range(number)]
        judgements = await asyncio.gather(*calls)
        wall_s = time.monotonic() - began_s
        return Load(
            judgements=judgements,
            tally=pool.tally,
            requests_spent=pool.spent.requests,
            told=told,
            seen=server.seen(),
            wall_s=wall_s,
            worker_cpu_s=_cpu_s(workers) - cpu_before,
            driver_cpu_s=time.process_time() - own_before,
            concurrency=config.concurrency,
        )
    finally:
        pool.close()


def judge_workers() -> list[psutil.Process]:
    """The processes of this Ray's judge actors, their limiter included."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if any(name in part for part in process.cmdline() for name in ACTORS)]


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))
