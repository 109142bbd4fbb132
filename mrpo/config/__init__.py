"""The whole configuration: each default lives once, in a field of a module here, with its meaning and unit.

YAML under `conf/` composes and overrides; `mrpo.validation` turns the composed tree into these dataclasses. Imports no
torch.
"""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from enum import StrEnum
from typing import Any

from pydantic.dataclasses import dataclass

from mrpo.config.algorithm import AlgorithmConfig, AnswerConfig, BertScoreConfig, LossConfig, RewardConfig
from mrpo.config.cluster import ClusterConfig
from mrpo.config.data import DataConfig
from mrpo.config.evaluation import BenchmarkConfig, CheckConfig, EvalConfig, ParityConfig
from mrpo.config.fields import STRICT, NonNegativeInt, PositiveInt
from mrpo.config.judge import (
    BreakerConfig,
    EndpointConfig,
    JudgeCacheConfig,
    JudgeConfig,
    LexicalConfig,
    OracleConfig,
    PriceConfig,
    ProviderConfig,
    VllmJudgeConfig,
)
from mrpo.config.learner import LearnerConfig, LoraConfig, SftConfig
from mrpo.config.model import ErrorRatesConfig, ModelConfig, WarmStartConfig
from mrpo.config.profile import ProfileConfig
from mrpo.config.record import CheckpointConfig, WandbConfig
from mrpo.config.rollout import RolloutConfig
from mrpo.config.tensorboard import TensorBoardConfig
from mrpo.config.watchdog import WatchdogConfig

__all__ = [
    "AlgorithmConfig",
    "AnswerConfig",
    "BenchmarkConfig",
    "BertScoreConfig",
    "BreakerConfig",
    "CheckConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EndpointConfig",
    "ErrorRatesConfig",
    "EvalConfig",
    "JudgeCacheConfig",
    "JudgeConfig",
    "LearnerConfig",
    "LexicalConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OracleConfig",
    "ParityConfig",
    "PriceConfig",
    "ProfileConfig",
    "ProviderConfig",
    "RewardConfig",
    "RolloutConfig",
    "SftConfig",
    "TensorBoardConfig",
    "VllmJudgeConfig",
    "WandbConfig",
    "WarmStartConfig",
    "WatchdogConfig",
    "default_tree",
    "plain",
]


@dataclass(kw_only=True, frozen=True, config=STRICT)
class Config:
    """A run. Written resolved into the run folder; holds no secret."""

    experiment: str = "phantom"
    seed: NonNegativeInt = 0
    num_steps: PositiveInt = 140  # optimizer steps
    runs_dir: str = "runs"
    cache_dir: str = "~/.cache/mrpo"  # phantom scans and warm-started toys, by content hash
    run_name: str | None = None  # of the folder runs_dir/<experiment>/<run_name>; null: the time
    # A run folder; "auto": the run of this run_name, or the experiment's newest where it is unfinished, else a new one.
    resume: str | None = None
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    sft: SftConfig = SftConfig()
    judge: JudgeConfig = JudgeConfig()
    cluster: ClusterConfig = ClusterConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    parity: ParityConfig = ParityConfig()
    eval: EvalConfig = EvalConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    check: CheckConfig = CheckConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    profile: ProfileConfig = ProfileConfig()
    wandb: WandbConfig = WandbConfig()
    tensorboard: TensorBoardConfig = TensorBoardConfig()


def default_tree() -> dict[str, Any]:
    """All defaults as plain data, so that Hydra knows every key that may be overridden."""
    tree = plain(Config())
    assert isinstance(tree, dict)
    return tree


def plain(value: Any) -> Any:
    """A configuration as JSON-like data: dataclasses to dicts, enums to their values, tuples to lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value
