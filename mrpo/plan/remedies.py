"""What would make a plan fit: overrides to type, the least intrusive first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mrpo.choices import Device, Placement, WeightTransfer
from mrpo.config import Config
from mrpo.errors import ConfigError
from mrpo.plan.architecture import Architecture
from mrpo.plan.memory import GIB
from mrpo.plan.plan import Plan, make_plan
from mrpo.validation import check_contradictions

Overrides = Mapping[str, Any]
TOKENS_STEP = 256  # budgets are multiples of it
UTILIZATION_STEP = 0.05
LORA_RANK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """Settings with which the run fits."""

    what: str  # for people
    overrides: Overrides

    @property
    def text(self) -> str:
        """As one types it into ARGS."""
        return " ".join(f"{key}={_written(value)}" for key, value in self.overrides.items())


def remedies_of(plan: Plan) -> list[Remedy]:
    """The first remedy that works, and adapters where they work and are not in it; empty where nothing does.

    Steps are tried alone, then one after the other on top of each other; what turns out unneeded is taken back.
    """
    config, architecture = plan.config, plan.architecture
    steps = list(_steps(plan))
    found: list[Remedy] = []
    for name, overrides in steps:
        if _fits(config, architecture, overrides):
            found.append(Remedy(what=name, overrides=overrides))
            break
    else:
        summed: dict[str, Any] = {}
        for _, overrides in steps:
            summed |= overrides
            if _fits(config, architecture, summed):
                kept = _without_unneeded(config, architecture, [o for _, o in steps], summed)
                names = [name for name, own in steps if set(own) <= set(kept)]
                found.append(Remedy(what=", ".join(names), overrides=kept))
                break
    if config.learner.lora.r == 0 and not any("learner.lora.r" in remedy.overrides for remedy in found):
        for extra in ({}, *(overrides for _, overrides in steps)):
            lora = {**extra, "learner.lora.r": LORA_RANK}
            if _fits(config, architecture, lora):
                found.append(Remedy(what="adapters", overrides=lora))
                break
    return found


def with_overrides(config: Config, overrides: Overrides) -> Config:
    """A configuration with some settings changed, by dotted name.

    Raises:
        ConfigError: they contradict others.
    """
    for key, value in overrides.items():
        config = _replaced(config, key.split("."), value)
    check_contradictions(config)
    return config


def _replaced(section: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return replace(section, **{name: _replaced(vars(section)[name], rest, value) if rest else value})


def _fits(config: Config, architecture: Architecture, overrides: Overrides) -> bool:
    try:
        return make_plan(with_overrides(config, overrides), architecture=architecture).fits
    except ConfigError:
        return False


def _steps(plan: Plan) -> Iterator[tuple[str, Overrides]]:
    """Single changes, from those that cost nothing to those that change what is trained."""
    config, architecture = plan.config, plan.architecture
    learner, rollout, cluster = config.learner, config.rollout, config.cluster
    on_gpu = cluster.device == Device.GPU
    if on_gpu:
        share = _share(config, architecture)
        if share is not None:
            yield "another share of the GPU for the engine", {"rollout.gpu_memory_utilization": share}
        elif not any(place.fits for place in plan.places if "sampling" in place.name or "engine" in place.name):
            least = -(-plan.workload.sample_tokens // TOKENS_STEP) * TOKENS_STEP
            if least < rollout.max_model_len:
                yield "shorter sequences", {"rollout.max_model_len": least}
    elif plan.engine.concurrent < 1:
        needed = plan.engine.bytes_per_token * rollout.max_model_len
        yield "a larger cache", {"rollout.kv_cache_gib": -(-needed // GIB)}
    if config.checkpoint.asynchronous and not all(p.fits for p in plan.places if "main memory" in p.name):
        yield "checkpoints that training waits for", {"checkpoint.asynchronous": False}
    for budget in _budgets(plan):
        overrides = {"learner.tokens_per_micro_batch": budget}
        if _fits(config, architecture, overrides):
            yield "smaller micro-batches", overrides
            break
    else:
        smallest = min(_budgets(plan), default=None)
        if smallest is not None:
            yield "smaller micro-batches", {"learner.tokens_per_micro_batch": smallest}
    if not learner.gradient_checkpointing:
        yield "gradient checkpointing", {"learner.gradient_checkpointing": True}
    if learner.zero_stage < 3 and learner.num_ranks > 1:
        yield "ZeRO-3", {"learner.zero_stage": 3}
    if not learner.cpu_offload:
        offload: dict[str, Any] = {"learner.cpu_offload": True}
        yield "offload to main memory", offload if learner.zero_stage else offload | {"learner.zero_stage": 2}
    if on_gpu:
        yield from _arrangements(config)
    if learner.lora.r == 0:
        yield "adapters instead of full fine-tuning", {"learner.lora.r": LORA_RANK}


def _budgets(plan: Plan) -> list[int]:
    """Halved budgets, down to one completion of full length."""
    least = -(-plan.workload.sample_tokens // TOKENS_STEP) * TOKENS_STEP
    budget, found = plan.config.learner.tokens_per_micro_batch, []
    while budget > least:
        budget = max(least, budget // 2 // TOKENS_STEP * TOKENS_STEP)
        found.append(budget)
    return found


def _share(config: Config, architecture: Architecture) -> float | None:
    """The largest other share with which the engine's part fits, whatever the learner's does."""
    count = int(0.9 / UTILIZATION_STEP)
    for share in (round(UTILIZATION_STEP * number, 2) for number in range(count, 0, -1)):
        if share == config.rollout.gpu_memory_utilization:
            continue
        plan = make_plan(
            replace(config, rollout=replace(config.rollout, gpu_memory_utilization=share)), architecture=architecture
        )
        own = [place for place in plan.places if place.name in ("engine GPU", "shared GPU, sampling")]
        if all(place.fits for place in own):
            return share
    return None


def _arrangements(config: Config) -> Iterator[tuple[str, Overrides]]:
    """Other parts of the GPUs there are; then twice as many on a node."""
    cluster, rollout = config.cluster, config.rollout
    size = rollout.tensor_parallel
    there = cluster.num_nodes * cluster.gpus_per_node
    split: dict[str, Any] = {}
    if cluster.placement == Placement.COLOCATED:
        split = {"cluster.placement": Placement.SPLIT, "cluster.weight_transfer": WeightTransfer.NCCL}
    for gpus, extra in ((there, {}), (2 * there, {"cluster.gpus_per_node": 2 * cluster.gpus_per_node})):
        for engines in (max(1, gpus // 2 // size), 1):
            ranks = gpus - engines * size
            if ranks > config.learner.num_ranks or (split and ranks >= 1):
                yield (
                    f"{ranks} learner ranks beside {engines} engines on {gpus} GPUs",
                    {**split, **extra, "rollout.num_engines": engines, "learner.num_ranks": ranks},
                )


def _without_unneeded(
    config: Config, architecture: Architecture, steps: list[Overrides], summed: dict[str, Any]
) -> dict[str, Any]:
    kept = dict(summed)
    for overrides in steps:
        fewer = {key: value for key, value in kept.items() if key not in overrides}
        if fewer and len(fewer) < len(kept) and _fits(config, architecture, fewer):
            kept = fewer
    return kept


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
