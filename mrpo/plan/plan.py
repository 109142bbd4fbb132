"""The plan of a run: who sits where, what each place needs and has, and whether it fits."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mrpo.choices import Device
from mrpo.config import Config
from mrpo.placement import Layout, num_judge_servers, placement_of
from mrpo.plan.architecture import Architecture, architecture_of
from mrpo.plan.engine_memory import PROCESS_BYTES, EngineMemory, engine_memory
from mrpo.plan.judge_memory import judge_memory
from mrpo.plan.learner_memory import RankMemory, RankSettings, rank_memory
from mrpo.plan.memory import GIB, MIB, Memory, Part, largest
from mrpo.plan.workload import Workload, workload_of

USABLE = 0.95  # of a GPU's memory: the rest is lost between blocks, and a driver keeps some
HOST_USABLE = 0.9  # of main memory: the rest is the system's
DRIVER_BYTES = 2 * GIB  # estimate: the command itself, Ray, the judge's clients


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A kind of GPU, or a node's main memory, at the moment when it holds most."""

    name: str
    number: int  # of such places
    memory: Memory
    limit: int  # bytes; for an engine's own GPU its share
    shortage: str = ""  # what is lacking although the sum fits

    @property
    def fits(self) -> bool:
        """Whether the sum stays within the limit and nothing is lacking."""
        return self.memory.total <= self.limit and not self.shortage


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything `make plan` says. Made by `make_plan`."""

    config: Config
    architecture: Architecture
    layout: Layout
    workload: Workload
    rank: RankMemory
    engine: EngineMemory
    judge: EngineMemory | str | None  # of the run's own judge; why it is not known; None: there is none, or no GPU
    places: tuple[Place, ...]

    @property
    def fits(self) -> bool:
        """Whether every place does."""
        return all(place.fits for place in self.places)

    @property
    def notes(self) -> list[str]:
        """What may end a run although memory suffices."""
        rollout, budget = self.config.rollout, self.config.learner.tokens_per_micro_batch
        sample = self.workload.sample_tokens
        found = [self.judge] if isinstance(self.judge, str) else []
        for name, value in (
            ("rollout.max_model_len", rollout.max_model_len),
            ("learner.tokens_per_micro_batch", budget),
        ):
            if sample > value:
                found.append(
                    f"a prompt with the largest image and the longest completion is about {sample:,} tokens, more than "
                    f"{name}={value}: raise it, or lower model.max_pixels, model.max_tiles or rollout.max_new_tokens"
                )
        return found


def make_plan(config: Config, *, architecture: Architecture | None = None) -> Plan:
    """Calculate; nothing is started, fetched or written.

    Raises:
        ConfigError: the model's sizes are not to be had, or actors cannot be placed.
    """
    architecture = architecture or architecture_of(config.model)
    layout = placement_of(config)
    workload = workload_of(config, architecture)
    rank = rank_memory(
        architecture,
        RankSettings(
            learner=config.learner,
            num_ranks=config.learner.num_ranks,
            on_gpu=config.cluster.device == Device.GPU,
            reference=config.algorithm.loss.beta > 0,
            freeze_tower=config.model.freeze_vision_tower,
            freeze_projector=config.model.freeze_projector,
            load=workload.load,
        ),
    )
    engine = engine_memory(config, architecture, workload)
    own = any(gpu.judge is not None for gpu in layout.gpus)
    judge = judge_memory(config) if own else None
    return Plan(
        config=config,
        architecture=architecture,
        layout=layout,
        workload=workload,
        rank=rank,
        engine=engine,
        judge=judge,
        places=(*_places(config, layout, rank, engine), *_judge_places(config, layout, judge)),
    )


def _places(config: Config, layout: Layout, rank: RankMemory, engine: EngineMemory) -> tuple[Place, ...]:
    if config.cluster.device == Device.CPU:
        return (_cpu_host(config, rank, engine),)
    hosts = _hosts(config, layout, rank, engine)
    limit = int(USABLE * config.cluster.gpu_memory_gib * GIB)
    cache = _cache_shortage(config, engine)
    if layout.shared:
        return (*_shared(config, layout, rank, engine, limit=limit, shortage=cache), *hosts)
    num_engine_gpus = sum(gpu.engine is not None for gpu in layout.gpus)
    budget = int(config.rollout.gpu_memory_utilization * config.cluster.gpu_memory_gib * GIB)
    return (
        Place(
            name="learner GPU",
            number=config.learner.num_ranks,
            memory=largest(rank.learning, rank.publishing),
            limit=limit,
        ),
        Place(name="engine GPU", number=num_engine_gpus, memory=engine.awake, limit=min(budget, limit), shortage=cache),
        *hosts,
    )


def _judge_places(config: Config, layout: Layout, judge: EngineMemory | str | None) -> tuple[Place, ...]:
    """The GPUs of the run's own judge, where its model's sizes are known."""
    if judge is None or isinstance(judge, str):
        return ()
    settings, gpus = config.judge.vllm, sum(gpu.judge is not None for gpu in layout.gpus)
    limit = int(min(USABLE, settings.gpu_memory_utilization) * config.cluster.gpu_memory_gib * GIB)
    length = settings.max_model_len
    shortage = f"the cache holds {judge.cache_tokens:,} tokens, not one call of judge.vllm.max_model_len={length:,}"
    fits = judge.concurrent >= 1
    return (Place(name="judge GPU", number=gpus, memory=judge.awake, limit=limit, shortage="" if fits else shortage),)


def _cache_shortage(config: Config, engine: EngineMemory) -> str:
    length = config.rollout.max_model_len
    if engine.concurrent >= 1:
        return ""
    return f"the cache holds {engine.cache_tokens:,} tokens, not one sequence of rollout.max_model_len={length:,}"


def _shared(
    config: Config, layout: Layout, rank: RankMemory, engine: EngineMemory, *, limit: int, shortage: str
) -> tuple[Place, Place]:
    """Both halves of a step on a GPU that engine and rank take in turns.

    Beside an engine that is awake the rank rests, scores (parity, probe) or saves. Weights are sent while the cache is
    still away, through buffers that hold the largest tensor.
    """
    share = max(engine.awake.total, int(config.rollout.gpu_memory_utilization * config.cluster.gpu_memory_gib * GIB))
    weights = engine.awake.parts[Part.WEIGHTS]
    awake = largest(
        rank.resting.plus("sampling, learner at rest", engine=share),
        rank.scoring.plus("scoring, engine awake", engine=share),
        rank.saving.plus("saving, engine awake", engine=share),
    )
    bucket = int(config.learner.bucket_mib * MIB)
    mapped = 2 * max(0, rank.largest_tensor - bucket)
    learning = largest(
        rank.learning.plus(f"{rank.learning.phase}, engine asleep", engine=engine.asleep),
        rank.publishing.plus("sending weights, cache asleep", engine=engine.asleep + weights, buffers=mapped),
    )
    number = sum(gpu.rank is not None for gpu in layout.gpus)
    return (
        Place(name="shared GPU, sampling", number=number, memory=awake, limit=limit, shortage=shortage),
        Place(name="shared GPU, learning", number=number, memory=learning, limit=limit),
    )


def _hosts(config: Config, layout: Layout, rank: RankMemory, engine: EngineMemory) -> tuple[Place, ...]:
    """Main memory of the fullest node; where Ray decides, as if each node took an equal part."""
    nodes = config.cluster.num_nodes
    ranks = Counter(gpu.node for gpu in layout.gpus if gpu.rank is not None)
    engines = Counter(gpu.node for gpu in layout.gpus if gpu.engine is not None)
    judges = Counter(gpu.node for gpu in layout.gpus if gpu.judge is not None)
    crowds = {node: (ranks[node], engines[node], judges[node]) for node in {*ranks, *engines, *judges}}
    if None in crowds:
        ranks_each, engines_each, judges_each = (-(-sum(many.values()) // nodes) for many in (ranks, engines, judges))
        crowds = {None: (ranks_each, engines_each, judges_each)}
    saving = {None} if None in crowds else {gpu.node for gpu in layout.gpus if gpu.rank == 0}
    moments = [
        _saved(config, rank, _host(rank, engine, *crowd, asleep=layout.shared), is_here=node in saving)
        for node, crowd in crowds.items()
    ]
    limit = int(HOST_USABLE * config.cluster.node_memory_gib * GIB)
    return (Place(name="node, main memory", number=nodes, memory=largest(*moments), limit=limit),)


def _host(
    rank: RankMemory, engine: EngineMemory, num_ranks: int, num_engine_ranks: int, num_judge_ranks: int, *, asleep: bool
) -> Memory:
    parts = {part: size * num_ranks for part, size in rank.host.parts.items()}
    backup = engine.backup if asleep else 0
    return Memory(phase="always", parts=parts).plus(
        "engines asleep" if asleep else "always",
        engine=(engine.host + backup) * num_engine_ranks + PROCESS_BYTES * num_judge_ranks,
        context=DRIVER_BYTES,
    )


def _saved(config: Config, rank: RankMemory, memory: Memory, *, is_here: bool) -> Memory:
    """With the copy of a checkpoint that is being written, on the node of rank 0."""
    if not is_here or not config.checkpoint.asynchronous:
        return memory
    return memory.plus(f"{memory.phase}, a checkpoint under way", checkpoint=rank.snapshot)


def _cpu_host(config: Config, rank: RankMemory, engine: EngineMemory) -> Place:
    """One machine holds everything: a learner's step beside engines that keep their memory."""
    ranks = config.learner.num_ranks
    parts = {part: size * ranks for part, size in rank.learning.parts.items()}
    memory = Memory(phase=rank.learning.phase, parts=parts)
    for part, size in rank.host.parts.items():
        memory = memory.plus(memory.phase, **{part.name.lower(): size * ranks})
    engines = engine.awake.total * config.rollout.num_engines + PROCESS_BYTES * num_judge_servers(config)
    return Place(
        name="this machine, main memory",
        number=1,
        memory=_saved(config, rank, memory.plus(memory.phase, engine=engines, context=DRIVER_BYTES), is_here=True),
        limit=int(HOST_USABLE * config.cluster.node_memory_gib * GIB),
        shortage=_cache_shortage(config, engine),
    )
