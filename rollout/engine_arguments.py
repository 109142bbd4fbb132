"""What vLLM is asked to start, without vLLM: the plain part of its `EngineArgs`."""

from __future__ import annotations

from typing import Any

from mrpo.choices import Device, Dtype
from mrpo.errors import ConfigError
from rollout.spec import EngineSpec

CPU_TOKENS_PER_STEP = 2048  # prompt tokens computed at once; vLLM warms up with as many
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the sizes vLLM has room for


def engine_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Keywords of `EngineArgs`; the engine adds those that are vLLM's own objects.

    Raises:
        ConfigError: adapters of a rank that vLLM has no room for.
    """
    rollout = spec.rollout
    on_cpu = spec.device == Device.CPU
    automatic = Dtype.FLOAT32 if on_cpu else Dtype.BFLOAT16
    dtype = automatic if rollout.dtype == Dtype.AUTO else rollout.dtype
    # Scoring takes a whole completion as prompt and must sample one more token.
    max_model_len = rollout.max_model_len + 1
    arguments: dict[str, Any] = {
        "model": spec.model_folder,
        "dtype": dtype.value,
        "enforce_eager": rollout.enforce_eager,
        "max_model_len": max_model_len,
        "max_num_seqs": rollout.max_num_seqs,
        "tensor_parallel_size": rollout.tensor_parallel,
        # An engine's ranks are processes of its actor, on the GPUs that Ray shows the actor. Left to itself inside a
        # placement group, vLLM would ask Ray for further actors, for whom the group has no room.
        "distributed_executor_backend": "mp" if rollout.tensor_parallel > 1 else "uni",
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "logits_processors": ["rollout.token_bans:TokenBans"],
        "generation_config": "vllm",  # the checkpoint's own would bring penalties and further stop tokens
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "seed": 0,  # every request brings its own
    }
    if spec.adapter_rank:
        arguments |= _adapter_arguments(spec)
    if on_cpu:
        arguments |= {
            "skip_mm_profiling": True,
            "mm_processor_cache_gb": 0,  # prompts are kept ready here, with their pixels
            # A prompt split over two steps makes vLLM rewind the request's generator, which torch cannot on a CPU
            # ("CPU Generator does not use offset").
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(CPU_TOKENS_PER_STEP, max_model_len, rollout.max_num_seqs),
        }
    else:
        arguments["max_num_batched_tokens"] = max(rollout.max_num_batched_tokens, rollout.max_num_seqs)
        arguments["gpu_memory_utilization"] = rollout.gpu_memory_utilization
        arguments["enable_sleep_mode"] = spec.sleeps
    return arguments


def _adapter_arguments(spec: EngineSpec) -> dict[str, Any]:
    rank = spec.adapter_rank
    fitting = [size for size in ADAPTER_RANKS if size >= rank]
    if not fitting:
        raise ConfigError(
            f"learner.lora.r={rank} is more than the {ADAPTER_RANKS[-1]} that vLLM takes as an adapter; lower it, or "
            "set learner.lora.to_engines=merged"
        )
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_lora_rank": fitting[0],
        # Left out, vLLM makes room on the output head too, whose adapter code cannot compute a prompt's log-probs.
        "lora_target_modules": list(spec.adapter_targets),
    }
