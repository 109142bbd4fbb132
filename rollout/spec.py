"""What an engine actor is built from. Picklable and light: the driver makes it without importing torch or vLLM."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mrpo.choices import Device, Placement, WeightTransfer
from mrpo.config import Config, RolloutConfig
from mrpo.errors import ConfigError
from mrpo.families import family_of

DIES_WITH_PARENT = "MRPO_DIES_WITH_PARENT"  # in the environment of an engine's processes; read by `rollout.plugin`


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Everything one engine needs to know. Made by the composition root, read by the engine's actor."""

    name: str  # in logs and errors
    model_folder: str  # Hugging Face folder, readable on the engine's node
    model_type: str  # a row of mrpo.families
    rollout: RolloutConfig
    device: Device
    weight_transfer: WeightTransfer
    sleeps: bool  # it gives its GPUs to the learner in turns
    adapter_rank: int  # of the adapter that is sent beside the base weights; 0: all weights are sent
    adapter_targets: tuple[str, ...]  # last names of the layers it is on
    terse: bool  # prompts are the bare question
    max_pixels: int
    max_tiles: int | None  # as `model.max_tiles`
    step_strategy: str
    cores: tuple[int, ...]  # the engine is bound to these; empty: not bound
    log_file: str | None  # output of the engine goes here; None: where the process's output goes
    actor_name: str = ""  # of this life of the engine; the actor is given it
    gpu_ids: tuple[str, ...] = ()  # on this machine; empty: those that Ray shows the actor
    trace_stacks: bool | None = None  # whether recordings of it hold Python's frames; None: nothing can be recorded
    trace_steps: int = 0  # of the engine, in a recording; 0: all until its end


def engine_specs(config: Config, model_folder: str, model_type: str, *, log_dir: str | None) -> list[EngineSpec]:
    """The rollout part of a run's configuration, one spec per engine that there may be.

    Args:
        config: of the run.
        model_folder: Hugging Face folder of the policy.
        model_type: its family.
        log_dir: existing folder for the engines' logs; None leaves their output on the console.

    Raises:
        ConfigError: `rollout.cpu_cores` does not fit the number of engines or cannot be read.
    """
    rollout, lora = config.rollout, config.learner.lora
    return [
        EngineSpec(
            name=f"engine-{index}",
            model_folder=model_folder,
            model_type=model_type,
            rollout=rollout,
            device=config.cluster.device,
            weight_transfer=config.cluster.weight_transfer,
            sleeps=config.cluster.placement == Placement.COLOCATED,
            adapter_rank=lora.r if lora.sends_adapter else 0,
            adapter_targets=lora.targets or family_of(model_type).lora_targets,
            terse=config.model.terse_prompt,
            max_pixels=config.model.max_pixels,
            max_tiles=config.model.max_tiles,
            step_strategy=config.algorithm.step_strategy,
            cores=cores,
            log_file=None if log_dir is None else os.path.join(log_dir, f"engine-{index}.log"),
            trace_stacks=config.profile.stacks if config.profile.active else None,
            trace_steps=config.profile.engine_steps,
        )
        for index, cores in enumerate(cores_of_engines(rollout.cpu_cores, rollout.engines_at_most))
    ]


def cores_of_engines(cpu_cores: str | None, num_engines: int) -> list[tuple[int, ...]]:
    """Cores of each engine. "0-3" gives all engines the same cores, "0,1|2,3" each its own.

    Raises:
        ConfigError: another number of parts than engines, or not a list of cores.
    """
    if cpu_cores is None:
        return [()] * num_engines
    parts = cpu_cores.split("|")
    if len(parts) == 1:
        parts *= num_engines
    if len(parts) != num_engines:
        raise ConfigError(
            f"rollout.cpu_cores={cpu_cores!r} has {len(parts)} parts for {num_engines} engines; "
            "give one list of cores for all, or one for each engine separated by '|'"
        )
    try:
        return [tuple(_core_list(part)) for part in parts]
    except ValueError:
        raise ConfigError(
            f"rollout.cpu_cores={cpu_cores!r} is not a list of cores such as '0', '0-3' or '0,2'"
        ) from None


def _core_list(text: str) -> list[int]:
    cores: list[int] = []
    for item in text.split(","):
        first, _, last = item.partition("-")
        cores += range(int(first), int(last or first) + 1)
    if not cores:
        raise ValueError(text)
    return cores


def engine_environment(spec: EngineSpec) -> dict[str, str]:
    """Environment of the engine's process; it must be set before vLLM is imported."""
    on_cpu = spec.device == Device.CPU
    environment = {
        # Checkpoints are local folders; nothing may wait for a network that a hospital does not have.
        "HF_HUB_OFFLINE": "1",
        DIES_WITH_PARENT: "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "TOKENIZERS_PARALLELISM": "false",
        # On CPU the engine core runs inside the actor: a second process would import everything again (a third of the
        # start-up time) and cost a message per step. On GPUs it must not share Python's lock with the front end.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if on_cpu else "1",
    }
    if on_cpu:
        environment |= {
            # The actor binds itself; vLLM would take core 0 for its threads and reserve core 1.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # One process needs no address of the machine, which vLLM would otherwise ask the network for.
            "VLLM_HOST_IP": "127.0.0.1",
            "OMP_NUM_THREADS": str(max(1, len(spec.cores))),
        }
        if spec.rollout.enforce_eager:
            # vLLM compiles a helper of its log-probs even in eager mode: half a minute of g++ for nothing.
            environment["TORCHDYNAMO_DISABLE"] = "1"
    if spec.gpu_ids:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpu_ids)
    if spec.weight_transfer == WeightTransfer.IPC:
        # Handles of GPU memory are objects of torch, which the engine's front end can pass to the engine's own
        # processes only pickled. Nobody else can write to that connection.
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    return environment
