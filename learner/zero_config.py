"""DeepSpeed's configuration as a pure function of ours."""

from __future__ import annotations

from typing import Any

from mrpo.config import LearnerConfig
from mrpo.errors import ConfigError

BUCKET_ELEMENTS = 100_000_000  # of a gradient bucket; ZeRO allocates up to twice this many
PERSISTENT_ELEMENTS = 100_000  # on GPUs ZeRO-3 leaves smaller parameters whole, since gathering each costs latency


def zero_config(learner: LearnerConfig, *, bf16: bool, on_gpu: bool) -> dict[str, Any]:
    """The `config` of `deepspeed.initialize` for the policy.

    The learner decides when a step ends, because the number of micro-batches differs from step to step, and it
    divides by the global number of completions or tokens itself; so accumulation is left unmanaged.

    Args:
        learner: our settings.
        bf16: train in bfloat16 with float32 master weights; else all in float32.
        on_gpu: communication may overlap the backward pass.

    Raises:
        ConfigError: settings that DeepSpeed cannot combine.
    """
    if learner.zero_stage == 0 and (bf16 or learner.cpu_offload):
        what = "dtype=bfloat16" if bf16 else "cpu_offload=true"
        raise ConfigError(
            f"learner.zero_stage=0 keeps no master weights and cannot serve {what}; use zero_stage=1 or 2"
        )
    stage: dict[str, Any] = {
        "stage": learner.zero_stage,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "overlap_comm": on_gpu and learner.zero_stage == 2,
    }
    if learner.zero_stage == 3:
        stage |= {
            "stage3_param_persistence_threshold": persistent_elements(on_gpu=on_gpu),
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
        }
    if learner.cpu_offload:
        stage["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
        if learner.zero_stage == 3:
            stage["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # required, and without effect: the learner makes its own micro-batches
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # Without ZeRO the optimizer clips, since DeepSpeed would not report the norm before clipping.
        "gradient_clipping": learner.max_grad_norm if learner.zero_stage else 0.0,
        "bf16": {"enabled": bf16},
        "zero_optimization": stage,
        "zero_allow_untested_optimizer": True,  # a subclass of torch's AdamW
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's CPU Adam needs a compiler
    }
    if bf16 and accumulates_in_float32(learner):
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def accumulates_in_float32(learner: LearnerConfig) -> bool:
    """Whether gradients of bfloat16 micro-batches are added up in float32, where small ones are not rounded away.

    Not at stage 1, where DeepSpeed would take an optimizer of another kind; and not at stage 2 with offload, where it
    would keep the float32 sum on the GPU that offload is to relieve.
    """
    return learner.zero_stage == 3 or (learner.zero_stage == 2 and not learner.cpu_offload)


def reference_config(learner: LearnerConfig, *, bf16: bool, on_gpu: bool) -> dict[str, Any]:
    """The configuration of the frozen reference model, which is partitioned only under ZeRO-3."""
    stage: dict[str, Any] = {"stage": 3, "stage3_param_persistence_threshold": persistent_elements(on_gpu=on_gpu)}
    if learner.cpu_offload:
        stage["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    return {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": bf16}, "zero_optimization": stage}


def persistent_elements(*, on_gpu: bool) -> int:
    """Parameters with fewer elements stay whole under ZeRO-3; on CPU none does, so that toys are partitioned too."""
    return PERSISTENT_ELEMENTS if on_gpu else 0
