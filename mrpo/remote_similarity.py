"""BERTScore's encoder in a Ray actor: one for all who compare answers in a job."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrpo.config import BertScoreConfig, WatchdogConfig
from mrpo.errors import MRPOError
from mrpo.faults import FaultKind, FaultLog
from mrpo.rewards.bertscore import BertScoreEncoder
from mrpo.rewards.scorer import Pair, Similarity
from mrpo.stacks import ActorProcess, answer_stack_requests

ENCODER_RETRIES = 2  # calls that an encoder which was lost once is asked again
BATCHES_PER_PART = 16  # of the encoder, for which the deadline is: an evaluation compares many thousands of answers


async def remote_similarity(
    config: BertScoreConfig,
    *,
    timeout_s: float = WatchdogConfig().score_s,
    faults: FaultLog | None = None,
    log_dir: Path | None = None,
) -> Similarity:
    """The encoder in a Ray actor, loaded there; whoever asks for the same one in this job shares it.

    Args:
        config: of the encoder.
        timeout_s: for one part of the pairs (`watchdog.score_s`); then the actor is killed and asked once more.
        faults: told when it is lost and when it answers again; None: nobody keeps a record.
        log_dir: existing folder for the stacks of one that is stuck; None: they are only quoted.

    Raises:
        ConfigError: it cannot be loaded on the actor's node.
        MRPOError: it was lost and did not come back.
    """
    import ray

    name = f"bertscore/{config.model}/{config.num_layers}/{config.batch_size}"
    actor = (
        ray.remote(_EncoderActor)
        # Like a judge actor it must find a place where engines and learner hold every core.
        .options(name=name, get_if_exists=True, num_cpus=0, max_restarts=-1, max_task_retries=ENCODER_RETRIES)
        .remote(config)
    )
    encoder = _RemoteEncoder(actor, name, timeout_s, faults or FaultLog(None), log_dir)

    async def similarity(pairs: Sequence[Pair]) -> list[float]:
        scores: list[float] = []
        size = BATCHES_PER_PART * config.batch_size
        for first in range(0, len(pairs), size):
            scores += await encoder.ask("f1", list(pairs[first : first + size]))
        return scores

    await encoder.ask("load")
    return similarity


class _EncoderActor(BertScoreEncoder):
    """The encoder, and where it is."""

    def place(self) -> tuple[str, int]:
        """Ray's id of the node and the pid; its stacks can be had from then on."""
        import ray

        answer_stack_requests()
        return str(ray.get_runtime_context().get_node_id()), os.getpid()


class _RemoteEncoder:
    """The encoder's actor as one who asks it sees it."""

    def __init__(self, actor: Any, name: str, timeout_s: float, faults: FaultLog, log_dir: Path | None) -> None:
        self._actor = actor
        self._name = name
        self._timeout_s = timeout_s
        self._faults = faults
        self._log_dir = log_dir
        self._process: ActorProcess | None = None
        self._turn = asyncio.Lock()  # the actor does one thing at a time, and its deadline is for that

    async def ask(self, method: str, *arguments: Any) -> Any:
        """What a method returns, or raises; a lost actor is asked once more.

        Raises:
            MRPOError: it was lost again.
        """
        from ray.exceptions import RayActorError

        async with self._turn:
            try:
                return await self._ask(method, arguments, max_task_retries=0)
            except TimeoutError:
                how = await self._kill()
            except RayActorError as error:
                how = type(error).__name__
            self._process = None  # the next one is no further fault
            with self._faults.during(FaultKind.SCORER_LOST, self._name, how):
                try:
                    return await self._ask(method, arguments)
                except TimeoutError:
                    raise MRPOError(
                        f"the actor {self._name} was started again and lost again: {await self._kill()}"
                    ) from None
                except RayActorError as error:
                    raise MRPOError(f"the actor {self._name} was lost and did not come back: {error}") from None

    async def _ask(self, method: str, arguments: Sequence[Any], **options: Any) -> Any:
        """Without Ray's wrapper around errors of ours."""
        from ray.exceptions import RayTaskError

        async with asyncio.timeout(self._timeout_s):
            node_id, pid = await self._actor.place.options(**options).remote()
            known, self._process = self._process, ActorProcess(name=self._name, node_id=node_id, pid=pid)
            if known not in (None, self._process):
                how = "it died while nobody asked it, and was started again"
                self._faults.end(self._faults.begin(FaultKind.SCORER_LOST, self._name, how))
            try:
                return await getattr(self._actor, method).options(**options).remote(*arguments)
            except RayTaskError as error:
                if isinstance(error.cause, MRPOError):
                    raise error.cause from None
                raise

    async def _kill(self) -> str:
        """End an actor that is over its deadline, which Ray then starts again; how it was lost, with its stack."""
        import ray

        from mrpo.ray_nodes import record_stacks

        processes = [self._process] if self._process is not None else []
        found = await record_stacks(processes, log_dir=self._log_dir, stage="bertscore")
        ray.kill(self._actor, no_restart=False)
        doing = "".join(f" ({stacks.summary})" for stacks in found.values())
        return f"it did not answer within watchdog.score_s={self._timeout_s:g} s and was killed{doing}"
