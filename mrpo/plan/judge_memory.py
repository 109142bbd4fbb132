"""Memory of one GPU of the run's own judge (`judge.kind=vllm`): vLLM as for the policy, with the judge's settings."""

from __future__ import annotations

from dataclasses import replace

from mrpo.choices import Dtype
from mrpo.config import Config, ModelConfig
from mrpo.errors import ConfigError
from mrpo.plan.architecture import architecture_of
from mrpo.plan.engine_memory import EngineMemory, engine_memory
from mrpo.plan.workload import workload_of

SEQUENCES = 256  # estimate: that vLLM computes at once where nobody says how many


def judge_memory(config: Config) -> EngineMemory | str:
    """What a server takes; where its model's sizes are not known, why."""
    settings = config.judge.vllm
    assert settings.model is not None
    asked = replace(
        config,
        model=ModelConfig(path=settings.model),
        rollout=replace(
            config.rollout,
            tensor_parallel=settings.tensor_parallel,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            max_model_len=settings.max_model_len,
            max_num_seqs=SEQUENCES,
            dtype=Dtype.AUTO,
            enforce_eager=False,
        ),
    )
    try:
        architecture = architecture_of(asked.model)
    except ConfigError as error:
        return f"memory of the judge is not estimated: {error}"
    return engine_memory(asked, architecture, workload_of(asked, architecture))
