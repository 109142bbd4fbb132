"""What vLLM is told of an engine, as vLLM's own configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm import ModelRegistry
from vllm.config import ProfilerConfig, VllmConfig, WeightTransferConfig
from vllm.engine.arg_utils import EngineArgs

from mrpo.choices import Device
from mrpo.config import RolloutConfig
from mrpo.families import Family, family_of
from mrpo.weight_files import ties_embeddings
from rollout.engine_arguments import engine_arguments
from rollout.spec import EngineSpec


def engine_config(spec: EngineSpec, image_settings: dict[str, Any], traces: Path | None) -> VllmConfig:
    """The configuration of an engine in this process.

    Args:
        spec: of the engine.
        image_settings: of the image processor, as `mrpo.images.processor_settings` gives them.
        traces: folder for the profiler's traces; None: nothing is profiled.
    """
    if spec.device != Device.CPU:
        return _engine_args(spec, image_settings, traces).create_engine_config()
    _register_in_process(family_of(spec.model_type))
    config = _engine_args(spec, image_settings, traces).create_engine_config()
    config.cache_config.kv_cache_memory_bytes = _cpu_cache_bytes(spec.rollout, config)
    return config


def _engine_args(spec: EngineSpec, image_settings: dict[str, Any], traces: Path | None) -> EngineArgs:
    profiler: dict[str, Any] = {}
    if traces is not None:
        profiler = {
            "profiler_config": ProfilerConfig(
                profiler="torch",
                torch_profiler_dir=str(traces),
                torch_profiler_with_stack=bool(spec.trace_stacks),
                max_iterations=spec.trace_steps,
            )
        }
    return EngineArgs(
        **profiler,
        **engine_arguments(spec),
        mm_processor_kwargs=image_settings,
        hf_overrides={"tie_word_embeddings": ties_embeddings(Path(spec.model_folder))},
        weight_transfer_config=WeightTransferConfig(backend=spec.weight_transfer.value),
    )


def _register_in_process(family: Family) -> None:
    """Let vLLM inspect the model's class here instead of in a fresh process that imports everything once more."""
    registered = ModelRegistry.models[family.model_class]
    ModelRegistry.register_model(family.model_class, registered.load_model_cls())


def _cpu_cache_bytes(rollout: RolloutConfig, config: VllmConfig) -> int:
    """Memory of the KV cache: as configured, but no more than twice what all sequences at full length can fill.

    vLLM writes zeros to all of it when it starts; for a small model that would be most of the start and of the memory.
    """
    model, block = config.model_config, config.cache_config.block_size
    heads = model.get_num_layers(config.parallel_config) * model.get_total_num_kv_heads()
    bytes_per_token = 2 * heads * model.get_head_size() * model.dtype.itemsize
    blocks_per_sequence = -(-model.max_model_len // block)
    needed: int = rollout.max_num_seqs * blocks_per_sequence * block * bytes_per_token
    return min(rollout.kv_cache_gib * 1024**3, 2 * needed)
