"""BERTScore's encoder in a Ray actor: one for all who compare answers in a job."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from mrpo.config import BertScoreConfig
from mrpo.errors import MRPOError
from mrpo.rewards.bertscore import BertScoreEncoder
from mrpo.rewards.scorer import Pair, Similarity

ENCODER_RETRIES = 2  # calls that a restarted encoder is asked again


async def remote_similarity(config: BertScoreConfig) -> Similarity:
    """The encoder in a Ray actor, loaded there; whoever asks for the same one in this job shares it.

    Raises:
        ConfigError: it cannot be loaded on the actor's node.
    """
    import ray

    name = f"bertscore/{config.model}/{config.num_layers}/{config.batch_size}"
    actor = (
        ray.remote(BertScoreEncoder)
        # Like a judge actor it must find a place where engines and learner hold every core.
        .options(name=name, get_if_exists=True, num_cpus=0, max_restarts=-1, max_task_retries=ENCODER_RETRIES)
        .remote(config)
    )

    async def similarity(pairs: Sequence[Pair]) -> list[float]:
        scores: list[float] = await _answer_of(actor.f1.remote(list(pairs)))
        return scores

    await _answer_of(actor.load.remote())
    return similarity


async def _answer_of(call: Awaitable[Any]) -> Any:
    """What an actor returns, or raises, without Ray's wrapper around errors of ours."""
    from ray.exceptions import RayActorError, RayTaskError

    try:
        return await call
    except RayTaskError as error:
        if isinstance(error.cause, MRPOError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise MRPOError(f"the BERTScore actor was lost and did not come back: {error}") from None
