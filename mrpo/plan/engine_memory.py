"""Memory of one GPU of a vLLM engine: what the configured share leaves for the cache of keys and values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from mrpo.choices import Device, Dtype
from mrpo.config import Config
from mrpo.plan.architecture import Architecture
from mrpo.plan.memory import GIB, Memory, Part
from mrpo.plan.parameters import tensors_of
from mrpo.plan.workload import Workload

CPU_BATCHED_TOKENS = 2048  # as rollout/engine_arguments.py sets
CONTEXT_BYTES = GIB  # estimate: CUDA's context and vLLM's workspaces; stays while an engine sleeps
GRAPHS_BYTES = GIB  # estimate: CUDA graphs, none with rollout.enforce_eager; stay likewise
PROCESS_BYTES = 5 * GIB  # estimate of main memory: Python with torch and vLLM, two processes on a GPU
FLOAT32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """One of an engine's GPUs, all alike; the host's memory on a CPU. Made by `engine_memory`."""

    awake: Memory
    asleep: int  # bytes that sleep at level 1 leaves on the GPU
    host: int  # bytes of main memory that one of the engine's processes takes
    backup: int  # and that its weights take there while it sleeps
    cache: int  # bytes; below 0 where the share does not hold even the rest
    bytes_per_token: int  # of the cache, on this GPU
    cache_tokens: int
    concurrent: int  # sequences of full length `rollout.max_model_len`
    expected_concurrent: int  # sequences as long as the workload's


def kv_bytes_per_token(architecture: Architecture, *, element: int, tensor_parallel: int = 1) -> int:
    """Keys and values of all layers; heads are dealt to GPUs, and doubled where there are fewer."""
    text = architecture.text
    return 2 * text.layers * -(-text.kv_heads // tensor_parallel) * text.head_dim * element


def engine_memory(config: Config, architecture: Architecture, workload: Workload) -> EngineMemory:
    """What an engine takes and what it has left."""
    rollout, cluster, text, vision = config.rollout, config.cluster, architecture.text, architecture.vision
    on_gpu = cluster.device == Device.GPU
    bf16 = rollout.dtype == Dtype.BFLOAT16 or (rollout.dtype == Dtype.AUTO and on_gpu)
    element = 2 if bf16 else FLOAT32
    gpus = rollout.tensor_parallel
    weights = element * _parameters_of_gpu(architecture, gpus)
    batched = max(rollout.max_num_batched_tokens if on_gpu else CPU_BATCHED_TOKENS, rollout.max_num_seqs)
    # Hidden states and their copies, a layer's products, an image on its way, and logits of all sequences in float32.
    activations = batched * (4 * text.hidden + 3 * -(-text.intermediate // gpus)) * element
    activations += workload.image_tokens * vision.merge**2 * (8 * vision.hidden + 2 * vision.intermediate) * element
    logits = 2 * rollout.max_num_seqs * text.vocabulary * FLOAT32
    graphs = GRAPHS_BYTES if on_gpu and not rollout.enforce_eager else 0
    context = (CONTEXT_BYTES if on_gpu else PROCESS_BYTES) + graphs
    per_token = kv_bytes_per_token(architecture, element=element, tensor_parallel=gpus)
    if on_gpu:
        budget = int(rollout.gpu_memory_utilization * cluster.gpu_memory_gib * GIB)
        cache = budget - weights - activations - logits - context
    else:
        needed = rollout.max_num_seqs * (rollout.max_model_len + 1) * per_token
        cache = min(rollout.kv_cache_gib * GIB, 2 * needed)  # as rollout/engine.py bounds it
    tokens = max(0, cache) // per_token
    return EngineMemory(
        awake=Memory(
            phase="sampling",
            parts={
                Part.WEIGHTS: weights,
                Part.ACTIVATIONS: activations,
                Part.LOGITS: logits,
                Part.KV_CACHE: max(0, cache),
                Part.CONTEXT: context,
            },
        ),
        asleep=context,
        host=PROCESS_BYTES if on_gpu else 0,
        backup=weights if on_gpu else 0,
        cache=cache,
        bytes_per_token=per_token,
        cache_tokens=tokens,
        concurrent=min(rollout.max_num_seqs, tokens // rollout.max_model_len),
        expected_concurrent=min(rollout.max_num_seqs, tokens // workload.sample_tokens),
    )


@cache
def _parameters_of_gpu(architecture: Architecture, gpus: int) -> int:
    """Tensor parallelism deals matrices out and repeats vectors; the vision tower's are dealt out as well."""
    total = 0
    for shape in tensors_of(architecture).values():
        size = math.prod(shape)
        total += -(-size // gpus) if len(shape) > 1 else size
    return total
