"""DeepSpeed, the optimizer, adapters and supervised training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from mrpo.choices import Attention, Dtype, LoraTransfer
from mrpo.config.fields import STRICT, NonNegative, NonNegativeInt, Positive, PositiveInt, Share


@dataclass(kw_only=True, frozen=True, config=STRICT)
class LoraConfig:
    """Low-rank adapters on linear layers of the language model; the base weights stay as they are."""

    r: NonNegativeInt = 0  # rank; 0: full fine-tuning
    alpha: Positive = 32.0  # an adapter counts alpha / r times
    dropout: Share = 0.0  # of an adapter's input, in training; reinforcement weighs its noise as a change of the policy
    targets: tuple[str, ...] = ()  # names of layers, e.g. [q_proj,v_proj]; empty: the family's (mrpo/families.py)
    to_engines: LoraTransfer = LoraTransfer.ADAPTER  # merged: into weights of the engines' precision, which rounds

    @property
    def sends_adapter(self) -> bool:
        """Whether engines get the adapter itself instead of whole weights."""
        return self.r > 0 and self.to_engines == LoraTransfer.ADAPTER


@dataclass(kw_only=True, frozen=True, config=STRICT)
class LearnerConfig:
    """DeepSpeed and the optimizer."""

    num_ranks: PositiveInt = 1
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    cpu_offload: bool = False
    gradient_checkpointing: bool = False
    dtype: Dtype = Dtype.AUTO
    attention: Attention = Attention.AUTO
    lora: LoraConfig = LoraConfig()
    lr: Positive = 4e-4  # peak, AdamW
    lr_final_share: Share = 0.0  # the linear schedule ends at this share of lr
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegative = 0.0
    adam_betas: tuple[Share, Share] = (0.9, 0.999)
    adam_eps: Positive = 1e-8
    max_grad_norm: Positive = 1.0
    tokens_per_micro_batch: PositiveInt = 4096  # of all its samples, prompt and completion; there is no padding
    logprob_chunk_tokens: PositiveInt = 2048  # tokens whose logits exist at one time
    num_threads: NonNegativeInt = 0  # torch threads of a rank on CPU; 0: its machine's cores shared among ranks there
    bucket_mib: Positive = 64.0  # weights are published in buckets of about this size
    start_timeout_s: Positive = 300.0
    publish_timeout_s: Positive = 600.0  # of one transfer of weights to the engines; 16 GB at 1 Gbit/s take 130 s


@dataclass(kw_only=True, frozen=True, config=STRICT)
class SftConfig:
    """Supervised training on gold rationales (`make sft`); the defaults are the paper's baseline (arXiv 2606.31825)."""

    num_epochs: PositiveInt = 3
    batch_size: PositiveInt = 32  # examples of a step, over all ranks
    lr: Positive = 2e-5  # peak
    warmup_share: Share = 0.05  # of all steps
    lora: LoraConfig = LoraConfig(r=8, dropout=0.05)  # r=0: full fine-tuning
