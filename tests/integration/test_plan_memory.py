"""The plan's memory of a learner rank against the live tensors of a real step, within 15 %.

Float32 on one rank, because a CPU has no other; two cases in bfloat16. `make test` runs a few, `make test-all` all.
"""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mrpo.config import LoraConfig, LossConfig
from tests.integration.learner_world import spec
from tests.integration.plan_world import (
    BUCKET_ELEMENTS,
    MAX_PIXELS,
    TOLERANCE,
    build_model,
    measure,
    plan_step,
    samples_of,
)

MIB = 2**20
FULL = LoraConfig()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting of the learner."""

    family: str = "qwen2_5_vl"
    learner: dict[str, Any] = field(default_factory=dict)
    lora: LoraConfig = FULL
    beta: float = 0.0
    freeze: bool = False

    def __str__(self) -> str:
        parts = [self.family, *(f"{key}={value}" for key, value in self.learner.items())]
        parts += [f"lora={self.lora.r}/{self.lora.dropout:g}"] if self.lora.r else []
        parts += [f"beta={self.beta:g}"] if self.beta else []
        return " ".join(parts + ["frozen tower"] * self.freeze)


SHORT = [
    Case(family="qwen3_vl", learner={"zero_stage": 3}),
    Case(family="internvl", learner={"zero_stage": 0}),
]
LONG = [
    Case(learner={"zero_stage": 2, "gradient_checkpointing": True}, beta=0.04),
    Case(learner={"zero_stage": 2}, lora=LoraConfig(r=8, dropout=0.05)),
    *(Case(family=family, learner={"zero_stage": 2}) for family in ("qwen2_5_vl", "qwen3_vl", "internvl")),
    *(
        Case(family=family, learner={"zero_stage": 2, "gradient_checkpointing": True})
        for family in ("qwen3_vl", "internvl")
    ),
    Case(learner={"zero_stage": 0}),
    Case(learner={"zero_stage": 1}),
    Case(learner={"zero_stage": 3}, beta=0.04),
    Case(learner={"zero_stage": 3, "gradient_checkpointing": True}),
    Case(learner={"zero_stage": 2, "tokens_per_micro_batch": 2048}),
    Case(learner={"zero_stage": 2, "logprob_chunk_tokens": 4096}),
    Case(learner={"zero_stage": 2}, freeze=True),
    Case(learner={"zero_stage": 2}, lora=LoraConfig(r=8, dropout=0.0)),
    Case(learner={"zero_stage": 3}, lora=LoraConfig(r=8, dropout=0.0), beta=0.04),
    Case(learner={"zero_stage": 2, "gradient_checkpointing": True}, lora=LoraConfig(r=8, dropout=0.0)),
    Case(learner={"zero_stage": 2, "dtype": "bfloat16"}),
    Case(learner={"zero_stage": 3, "dtype": "bfloat16"}),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plan")


@pytest.mark.parametrize("case", [*SHORT, *(pytest.param(case, marks=pytest.mark.slow) for case in LONG)], ids=str)
def test_the_plan_is_within_15_per_cent_of_a_real_step(
    world: Path, case: Case, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    monkeypatch.setattr("learner.zero_config.BUCKET_ELEMENTS", BUCKET_ELEMENTS)
    folder = world / case.family
    if not folder.exists():
        build_model(case.family, folder)
    settings = {"tokens_per_micro_batch": 1024, "logprob_chunk_tokens": 256} | case.learner
    wanted = replace(
        spec(
            world, case.family, loss=LossConfig(beta=case.beta), lora=case.lora, freeze_vision_tower=case.freeze,
            **settings,
        ),
        max_pixels=MAX_PIXELS,
    )  # fmt: skip
    samples = samples_of(folder, num=8)
    plan = plan_step(wanted, samples)
    found = measure(wanted, samples)
    record_property("memory", f"plan {plan.learning.total / MIB:.0f} MiB, measured {found.peak / MIB:.0f} MiB")
    print(  # noqa: T201
        f"\n{case}: at rest {plan.resting.total / MIB:.0f} of {found.before / MIB:.0f} MiB, "
        f"peak {plan.learning.total / MIB:.0f} of {found.peak / MIB:.0f} ({plan.learning.total / found.peak - 1:+.1%})"
    )
    assert plan.resting.total == pytest.approx(found.before, rel=TOLERANCE)
    assert plan.learning.total == pytest.approx(found.peak, rel=TOLERANCE)
