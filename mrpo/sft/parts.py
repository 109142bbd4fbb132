"""The running part of supervised training: a learner alone. A composition root, like `mrpo.parts`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrpo.config import Config
from mrpo.console import Console
from mrpo.data.load import Dataset
from mrpo.parts import reserve_seats, warm_policy
from mrpo.phantom.warm_start import prepare_toy_policy
from mrpo.ray_session import start_ray

if TYPE_CHECKING:
    from learner.group import DeepSpeedLearner


async def policy_folder(
    config: Config,
    dataset: Dataset,
    console: Console,
    *,
    model_folder: Path | None,
    log_dir: Path,
    after_ray: Callable[[], None],
) -> Path:
    """The checkpoint to train; a toy's is the one reinforcement starts from, warm-started first where it is not yet.

    Args:
        config: of the run.
        dataset: its `warm` scans make the demonstrations of a toy's warm start.
        console: told what starts.
        model_folder: None for a toy.
        log_dir: existing folder of the run, which the nodes of a learner must share.
        after_ray: called once Ray is up (it replaces signal handlers).
    """
    if model_folder is not None:
        return model_folder
    toy = prepare_toy_policy(config, dataset.warm)
    if toy.is_warm:
        return toy.folder
    async with AsyncExitStack() as stack:
        start_ray(config, console, stack, engines=False, after_ray=after_ray, written=log_dir)
        return await warm_policy(config, dataset, console)


@asynccontextmanager
async def running_learner(
    config: Config, folder: Path, console: Console, *, log_dir: Path, after_ray: Callable[[], None]
) -> AsyncIterator[DeepSpeedLearner]:
    """Start a learner without engines, judge or reference model; end it on leaving.

    Args:
        config: of the run; the adapters are those of `config.sft`.
        folder: the checkpoint to train.
        console: told what starts.
        log_dir: existing folder for the stacks of ranks that are stuck.
        after_ray: called once Ray is up (it replaces signal handlers).

    Raises:
        ResourceError: the cluster has too few GPUs.
        UserError: what the learner has to say about its configuration.
    """
    from learner.group import DeepSpeedLearner
    from learner.spec import spec_of

    async with AsyncExitStack() as stack:
        start_ray(config, console, stack, engines=False, after_ray=after_ray, written=log_dir)
        spec = spec_of(config, str(folder))
        spec = replace(spec, lora=config.sft.lora, loss=replace(spec.loss, beta=0.0))
        seats = await reserve_seats(config, stack, engines=False)
        with console.stage(f"learner ({config.learner.num_ranks} rank(s), ZeRO-{config.learner.zero_stage})"):
            learner = DeepSpeedLearner(spec, seats.ranks, log_dir=str(log_dir))
            stack.push_async_callback(learner.close)
            await learner.start()
        yield learner


def policy_processor(config: Config, dataset: Dataset, model_folder: Path | None) -> Any:
    """Tokenizer and image processor of the policy, as the learner loads them; Ray is not needed.

    Args:
        config: of the run.
        dataset: a toy's tokenizer is made of its `warm` scans.
        model_folder: None for a toy, which is built where it is not in the cache, and not yet warm-started.

    Raises:
        ConfigError: no checkpoint there, or an unsupported family.
    """
    from learner.model import family_in, load_processor

    folder = str(model_folder or prepare_toy_policy(config, dataset.warm).folder)
    model = config.model
    return load_processor(folder, family_in(folder), max_pixels=model.max_pixels, max_tiles=model.max_tiles)
