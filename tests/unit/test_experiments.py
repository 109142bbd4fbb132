"""Every experiment composes and is valid; the published recipes hold the published numbers (algorithm §5)."""

from __future__ import annotations

from typing import Any

import pytest

from mrpo.choices import Aggregation, AnswerKind, DataKind, JudgeKind, KLEstimator, Placement, Shaping, WeightTransfer
from mrpo.compose import choices, compose_config
from mrpo.config import Config
from mrpo.errors import ConfigError
from mrpo.families import FAMILIES

PUBLISHED = ["internvl3", "qwen2_5_vl", "qwen3_vl"]
NEEDED = ["data.root=/data", "judge.url=http://judge:8000/v1", "judge.model=a-judge"]


def composed(experiment: str, *overrides: str) -> Config:
    return compose_config([f"experiment={experiment}", *NEEDED, *overrides])


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_composes_under_its_name(experiment: str) -> None:
    assert composed(experiment).experiment == experiment


@pytest.mark.parametrize("cluster", choices("cluster"))
@pytest.mark.parametrize("experiment", [*PUBLISHED, "phantom"])
def test_every_experiment_moves_to_every_cluster(experiment: str, cluster: str) -> None:
    moved = composed(experiment, f"cluster={cluster}").cluster
    assert (moved.weight_transfer == WeightTransfer.IPC) == (moved.placement == Placement.COLOCATED)
    assert (moved.gpus_per_node == 0) == (cluster == "local_cpu")


@pytest.mark.parametrize("algorithm", choices("algorithm"))
@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_baselines_are_overrides_of_every_recipe(experiment: str, algorithm: str) -> None:
    config = composed(experiment, f"algorithm={algorithm}")
    if algorithm == "mrpo":
        assert config.algorithm == composed(experiment).algorithm
    assert config.rollout == composed(experiment).rollout


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_the_recipes_are_the_published_ones(experiment: str) -> None:
    config = composed(experiment)
    expected: dict[str, tuple[Any, Any]] = {
        "group size": (config.rollout.group_size, 8),
        "prompts a step": (config.rollout.prompts_per_step, 8),
        "one epoch": (config.num_steps * config.rollout.prompts_per_step, 13_000),
        "temperature": (config.rollout.temperature, 1.0),
        "top-p": (config.rollout.top_p, 1.0),
        "new tokens": (config.rollout.max_new_tokens, 512),
        "pixels": (config.model.max_pixels, 802_816),
        "learning rate": (config.learner.lr, 1e-6),
        "decay to": (config.learner.lr_final_share, 0.0),
        "weight decay": (config.learner.weight_decay, 0.0),
        "gradient norm": (config.learner.max_grad_norm, 1.0),
        "ZeRO": (config.learner.zero_stage, 3),
        "checkpointing": (config.learner.gradient_checkpointing, True),
        "full": (config.learner.lora.r, 0),
        "nothing frozen": (config.model.freeze_vision_tower or config.model.freeze_projector, False),
        "beta": (config.algorithm.loss.beta, 0.04),
        "estimator": (config.algorithm.loss.kl_estimator, KLEstimator.K3),
        "epsilon": ((config.algorithm.loss.epsilon_low, config.algorithm.loss.epsilon_high), (0.2, 0.2)),
        "aggregation": (config.algorithm.loss.aggregation, Aggregation.SEQUENCE_MEAN),
        "shaping": ((config.algorithm.shaping, config.algorithm.threshold), (Shaping.MRPO, 0.6)),
        "answers": (config.reward.answer.kind, AnswerKind.MIXED),
        "data": (config.data.kind, DataKind.JSONL),
        "judge": (config.judge.kind, JudgeKind.OPENAI_COMPATIBLE),
        "SFT": ((config.sft.num_epochs, config.sft.lr), (3, 2e-5)),
        "SFT's adapters": ((config.sft.lora.r, config.sft.lora.alpha, config.sft.lora.dropout), (8, 32.0, 0.05)),
    }
    assert {name: got for name, (got, wanted) in expected.items() if got != wanted} == {}


def test_each_recipe_has_its_own_model() -> None:
    models = {experiment: composed(experiment).model for experiment in PUBLISHED}
    assert len({model.path for model in models.values()}) == len(FAMILIES) == 3
    assert not any(model.terse_prompt for model in models.values())
    tiles = {experiment: model.max_tiles for experiment, model in models.items()}
    assert tiles == {"qwen2_5_vl": None, "qwen3_vl": None, "internvl3": 802_816 // 448**2}


def test_the_recipe_for_one_card_trains_adapters_and_shares_it() -> None:
    config = composed("internvl3_lora_1gpu")
    assert config.model == composed("internvl3").model
    assert config.learner.lora.r > 0
    assert config.cluster.placement == Placement.COLOCATED
    assert config.cluster.num_nodes * config.cluster.gpus_per_node == 1


@pytest.mark.parametrize("typo", ["learner.lora.rank=8", "cluster.gpus=4", "sft.epochs=3", "model.max_tile=4"])
def test_a_typo_raises_and_names_what_was_meant(typo: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting"):
        composed("internvl3", typo)


def test_what_experiments_share_is_no_experiment() -> None:
    with pytest.raises(ConfigError, match="no such experiment"):
        compose_config(["experiment=_published"])
