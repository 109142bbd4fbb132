"""The running parts of a job — Ray, judge, engines, learner — started side by side and ended in order.

A composition root: it knows the concrete classes, and imports each where it is first needed, because together they
take longer to import than a typo takes to report.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mrpo.checkpoint_source import model_type_of
from mrpo.choices import Device, EncoderPlacement, Placement
from mrpo.config import Config, LoraConfig
from mrpo.console import Console
from mrpo.data.load import Dataset
from mrpo.faults import FaultLog
from mrpo.judge_parts import start_judge
from mrpo.judge_spending import SpendingLedger
from mrpo.phantom.warm_start import ToyPolicy, prepare_toy_policy, warm_start
from mrpo.placement import Seat, Seats, placement_of, to_begin
from mrpo.protocols import AnswerScorer, MeteredJudge
from mrpo.ray_session import start_ray
from mrpo.remote_similarity import remote_similarity
from mrpo.rewards.bertscore import check_encoder
from mrpo.rewards.scorer import Similarity, build_answer_scorer, local_similarity, needs_encoder
from mrpo.tasks import first_failure_ends_all

if TYPE_CHECKING:
    from learner.group import DeepSpeedLearner
    from rollout.pool import VllmRolloutPool


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a controller drives."""

    rollout: VllmRolloutPool
    judge: MeteredJudge | None
    learner: DeepSpeedLearner
    answers: AnswerScorer


@asynccontextmanager
async def running_parts(
    config: Config,
    dataset: Dataset,
    console: Console,
    *,
    model_folder: Path | None,
    similarity: Similarity | None,
    judge_ledger: SpendingLedger,
    log_dir: Path,
    after_ray: Callable[[], None],
    on_judge_event: Callable[[str], None] | None = None,
    faults: FaultLog,
) -> AsyncIterator[Parts]:
    """Start everything a training run needs, warm start included; end it all on leaving.

    Args:
        config: of the run.
        dataset: its `warm` scans make the demonstrations of a toy's warm start.
        console: told what starts.
        model_folder: the policy's checkpoint; None for a toy.
        similarity: the encoder that compares answers, where it runs in this process.
        judge_ledger: of what the run spends on its judge, with what its earlier parts spent.
        log_dir: existing folder for the engines' output.
        after_ray: called once Ray is up (it replaces signal handlers).
        on_judge_event: told in a line of outages and of budgets that run out; None: these are logged.
        faults: told of parts that are lost and come back.

    Raises:
        ResourceError: the cluster has too few GPUs.
        UserError: what a part has to say about its configuration.
    """
    async with AsyncExitStack() as stack:
        answers = await _start_common(
            config, console, stack, similarity=similarity, log_dir=log_dir, after_ray=after_ray, faults=faults
        )
        await _watch_nodes(config, stack, faults)
        if model_folder is None and config.learner.lora.r:
            model_folder = await warm_policy(config, dataset, console)
        toy = prepare_toy_policy(config, dataset.warm) if model_folder is None else None
        policy = toy.folder if toy is not None else model_folder
        assert policy is not None
        folder, model_type = str(policy), model_type_of(policy)
        seats = await reserve_seats(config, stack)
        async with first_failure_ends_all() as group:
            judge = group.create_task(
                start_judge(
                    config,
                    console,
                    stack,
                    judge_ledger,
                    on_judge_event,
                    seats=seats.judges,
                    log_dir=log_dir,
                    faults=faults,
                )
            )
            rollout = group.create_task(
                _start_rollout(config, folder, model_type, console, stack, log_dir, seats.engines, faults)
            )
            shared_with = rollout if config.cluster.placement == Placement.COLOCATED else None
            learner = group.create_task(
                _start_learner(config, folder, toy, dataset, console, stack, log_dir, seats.ranks, shared_with)
            )
        parts = Parts(rollout=rollout.result(), judge=judge.result(), learner=learner.result(), answers=answers)
        parts.learner.connect(transfer=config.cluster.weight_transfer, ranks_per_engine=config.rollout.tensor_parallel)
        parts.rollout.bring_weights = parts.learner.publish
        yield parts


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationParts:
    """What an evaluation asks."""

    rollout: VllmRolloutPool | None  # None: outputs were generated elsewhere
    judge: MeteredJudge | None
    answers: AnswerScorer


@asynccontextmanager
async def running_evaluation_parts(
    config: Config,
    console: Console,
    *,
    model_folder: Path | None,
    similarity: Similarity | None,
    judge_ledger: SpendingLedger,
    log_dir: Path,
    after_ray: Callable[[], None],
    on_judge_event: Callable[[str], None] | None = None,
) -> AsyncIterator[EvaluationParts]:
    """Start engines and judge without a learner; end them on leaving. Arguments and errors as `running_parts`.

    Args:
        model_folder: the checkpoint; None: no engine is needed.
    """
    async with AsyncExitStack() as stack:
        answers = await _start_common(
            config,
            console,
            stack,
            similarity=similarity,
            log_dir=log_dir,
            after_ray=after_ray,
            learner=False,
            engines=model_folder is not None,
        )
        rollout: asyncio.Task[VllmRolloutPool] | None = None
        seats = None if model_folder is None else await reserve_seats(config, stack, learner=False)
        judge_seats = None if seats is None else seats.judges
        async with first_failure_ends_all() as group:
            judge = group.create_task(
                start_judge(config, console, stack, judge_ledger, on_judge_event, seats=judge_seats, log_dir=log_dir)
            )
            if model_folder is not None and seats is not None:
                model_type = model_type_of(model_folder)
                rollout = group.create_task(
                    _start_rollout(
                        config, str(model_folder), model_type, console, stack, log_dir, seats.engines, FaultLog(None)
                    )
                )
        yield EvaluationParts(
            rollout=rollout.result() if rollout is not None else None, judge=judge.result(), answers=answers
        )


async def _start_common(
    config: Config,
    console: Console,
    stack: AsyncExitStack,
    *,
    similarity: Similarity | None,
    log_dir: Path,
    after_ray: Callable[[], None],
    faults: FaultLog | None = None,
    learner: bool = True,
    engines: bool = True,
) -> AnswerScorer:
    """Ray, and what scores answers."""
    written = log_dir if learner or engines else None
    start_ray(config, console, stack, after_ray=after_ray, learner=learner, written=written)
    if similarity is None and needs_encoder(config.reward):
        with console.stage("BERTScore encoder"):
            similarity = await remote_similarity(
                config.reward.answer.bertscore, timeout_s=config.watchdog.score_s, faults=faults, log_dir=log_dir
            )
    return build_answer_scorer(config.reward, similarity)


def answer_similarity(config: Config) -> Similarity | None:
    """The encoder of answers where it belongs in this process; one for an actor of this machine is only looked up.

    Raises:
        ConfigError: it cannot be loaded.
    """
    bertscore = config.reward.answer.bertscore
    on_this_machine = config.cluster.address is None
    if needs_encoder(config.reward) and bertscore.placement == EncoderPlacement.ACTOR and on_this_machine:
        check_encoder(bertscore)
    return local_similarity(config.reward)


async def reserve_seats(config: Config, stack: AsyncExitStack, *, learner: bool = True, engines: bool = True) -> Seats:
    """Places for engines and learner, all or none, until `stack` is left; on a CPU nobody needs one kept.

    Args:
        config: of the run.
        stack: of the caller.
        learner: False where there is none (an evaluation).
        engines: False where there are none (supervised training).

    Raises:
        ResourceError: the GPUs are not free together.
    """
    if config.cluster.device == Device.CPU:
        return Seats()
    from mrpo.ray_placement import reserved

    # Engines pinned by resources of the cluster's own find their place themselves, as those do that join later.
    seated = engines and not config.rollout.resources
    layout = placement_of(to_begin(config), learner=learner, engines=seated, judge=engines)
    return await stack.enter_async_context(reserved(layout)) if layout.bundles else Seats()


async def _start_rollout(
    config: Config,
    folder: str,
    model_type: str,
    console: Console,
    stack: AsyncExitStack,
    log_dir: Path,
    seats: Sequence[Seat],
    faults: FaultLog,
) -> VllmRolloutPool:
    from rollout.pool import VllmRolloutPool
    from rollout.spec import engine_specs

    with console.stage(f"{config.rollout.engines_to_begin} vLLM engine(s)"):
        specs = engine_specs(config, folder, model_type, log_dir=str(log_dir))
        pool = await VllmRolloutPool.start(specs, seats, faults=faults, no_engine_s=config.watchdog.no_engine_s)
        stack.push_async_callback(pool.close)
    return pool


async def _start_learner(
    config: Config,
    folder: str,
    toy: ToyPolicy | None,
    dataset: Dataset,
    console: Console,
    stack: AsyncExitStack,
    log_dir: Path,
    seats: Sequence[Seat],
    shared_with: asyncio.Task[VllmRolloutPool] | None,
) -> DeepSpeedLearner:
    from learner.group import DeepSpeedLearner
    from learner.spec import spec_of

    if shared_with is not None:
        # An engine measures the memory it may take while nobody else takes or frees any, and a learner needs more of it
        # to load a model than to hold one.
        await (await shared_with).sleep()
    with console.stage(f"learner ({config.learner.num_ranks} rank(s), ZeRO-{config.learner.zero_stage})"):
        learner = DeepSpeedLearner(spec_of(config, folder), seats, log_dir=str(log_dir))
        stack.push_async_callback(learner.close)
        await learner.start()
    if toy is not None and not toy.is_warm:
        with console.stage("warm start (once for this seed, then cached)"):
            await warm_start(config, learner, toy, dataset.warm)
        learner.begin_with(str(toy.warm_folder))
    return learner


async def _watch_nodes(config: Config, stack: AsyncExitStack, faults: FaultLog) -> None:
    from mrpo.ray_nodes import nodes_watched

    await stack.enter_async_context(nodes_watched(faults, every_s=config.watchdog.node_poll_s))


async def warm_policy(config: Config, dataset: Dataset, console: Console) -> Path:
    """The folder of the warm-started toy; where it is not in the cache, a learner is started for it alone.

    A toy is trained in full, whatever is trained in a run: adapters have nothing to build on in random weights.
    """
    from learner.group import DeepSpeedLearner
    from learner.spec import spec_of

    toy = prepare_toy_policy(config, dataset.warm)
    if not toy.is_warm:
        with console.stage("warm start (once for this seed, then cached)"):
            async with AsyncExitStack() as stack:
                seats = await reserve_seats(config, stack, engines=False)
                learner = DeepSpeedLearner(replace(spec_of(config, str(toy.folder)), lora=LoraConfig()), seats.ranks)
                stack.push_async_callback(learner.close)
                await learner.start()
                await warm_start(config, learner, toy, dataset.warm)
    return toy.warm_folder
