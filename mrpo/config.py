"""The whole configuration: each default lives once, in a field here, with its meaning and unit.

YAML under `conf/` composes and overrides; `mrpo.validation` turns the composed tree into these dataclasses. Imports no
torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from mrpo.choices import (
    AdvantageKind,
    Aggregation,
    AnswerKind,
    BestMetric,
    CheckpointChoice,
    DataKind,
    Device,
    Dtype,
    EncoderPlacement,
    Importance,
    JudgeFailurePolicy,
    JudgeKind,
    KLEstimator,
    Ratio,
    Schedule,
    Shaping,
    ToyFamily,
    TruncatedPolicy,
    WandbMode,
    WeightTransfer,
)

STRICT = ConfigDict(extra="forbid")

Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


@dataclass(kw_only=True, frozen=True, config=STRICT)
class ErrorRatesConfig:
    """Chance that a faulty demonstration states the prior instead of the truth, by attribute."""

    modality: Share = 0.5
    organ: Share = 0.5
    side: Share = 0.5
    half: Share = 0.5
    num_lesions: Share = 0.5


@dataclass(kw_only=True, frozen=True, config=STRICT)
class WarmStartConfig:
    """Supervised start of the phantom policy; only with `model.path=null`.

    True demonstrations teach it to see and speak; faulty ones then teach it the habit that reinforcement has to break.
    """

    num_scans: PositiveInt = 3072  # scans to draw demonstrations of
    batch_size: PositiveInt = 32
    true_steps: NonNegativeInt = 170  # steps on true demonstrations
    true_lr: Positive = 2e-3
    faulty_steps: NonNegativeInt = 60  # steps on faulty demonstrations
    faulty_lr: Positive = 1e-3
    error_rates: ErrorRatesConfig = ErrorRatesConfig()


@dataclass(kw_only=True, frozen=True, config=STRICT)
class ModelConfig:
    """The policy: a checkpoint, or a toy model of a real family."""

    path: str | None = None  # Hugging Face folder or hub id; null builds a toy
    revision: str | None = None
    toy_family: ToyFamily = ToyFamily.QWEN2_5_VL
    terse_prompt: bool = True  # bare question; real models need the full instruction (false)
    freeze_vision: bool = False
    max_pixels: PositiveInt = 802_816  # larger images are scaled down
    warm_start: WarmStartConfig = WarmStartConfig()


@dataclass(kw_only=True, frozen=True, config=STRICT)
class DataConfig:
    """Questions for training and held-out evaluation."""

    kind: DataKind = DataKind.PHANTOM
    root: str | None = None  # folder of the data set; image paths are relative to it
    train_file: str = "train.jsonl"  # kind=jsonl, relative to root
    test_file: str = "test.jsonl"
    num_train: PositiveInt | None = 2048  # questions used; null: all
    num_test: PositiveInt | None = 500
    seed: NonNegativeInt = 0  # of the phantom generator
    noise: NonNegative = 0.06  # standard deviation of the phantom's pixel noise, share of full scale
    max_bad_rows: NonNegativeInt = 0  # unreadable rows tolerated (each reported) before the command fails
    shuffle: bool = True


@dataclass(kw_only=True, frozen=True, config=STRICT)
class LossConfig:
    """The clipped surrogate and its KL penalty (algorithm §5)."""

    ratio: Ratio = Ratio.TOKEN
    epsilon_low: Share = 0.2
    epsilon_high: NonNegative = 0.2
    beta: NonNegative = 0.04  # KL weight; 0 loads no reference model
    kl_estimator: KLEstimator = KLEstimator.K3
    aggregation: Aggregation = Aggregation.SEQUENCE_MEAN
    constant_length: PositiveInt = 512  # tokens a completion is divided by under aggregation=constant
    importance: Importance = Importance.TRUNCATE  # by exp(old_logprobs − rollout_logprobs) of each token
    importance_cap: Positive = 2.0  # largest weight
    importance_floor: NonNegative = 0.5  # smallest weight, under importance=mask

    def __post_init__(self) -> None:
        """Refuse what is fine one by one and wrong together."""
        if self.ratio == Ratio.SEQUENCE and self.aggregation != Aggregation.SEQUENCE_MEAN:
            raise ValueError(
                f"ratio=sequence is defined with aggregation=sequence_mean, got {self.aggregation}; "
                "set that, or ratio=sequence_token"
            )
        floor, cap = self.importance_floor, self.importance_cap
        if self.importance == Importance.MASK and not (floor <= 1.0 <= cap and floor < cap):
            raise ValueError(
                f"importance=mask keeps weights from importance_floor={floor:g} to importance_cap={cap:g}; the floor "
                "must be below the cap, and 1 (no mismatch) from one to the other"
            )
        if self.importance == Importance.TRUNCATE and cap < 1.0:
            raise ValueError(
                f"importance=truncate with importance_cap={cap:g} cuts the weight of every token, those without a "
                "mismatch (1) too; set importance_cap to 1 or more"
            )


@dataclass(kw_only=True, frozen=True, config=STRICT)
class AlgorithmConfig:
    """From rewards to token advantages (algorithm §3, §4)."""

    advantage: AdvantageKind = AdvantageKind.GRPO
    eps: Positive = 1e-4  # added to the standard deviation
    shaping: Shaping = Shaping.MRPO
    base: Positive = math.e  # weight of the first step's penalty relative to the last's
    schedule: Schedule = Schedule.EXPONENTIAL
    threshold: Share = 0.6  # an answer reward above it counts as right
    credit_temperature: NonNegative = 0.1  # of shaping=pure's soft minimum over steps; 0: the minimum itself
    step_strategy: str = "sentence"  # what one step is; "fixed_tokens:N" cuts the reasoning every N tokens instead
    truncated: TruncatedPolicy = TruncatedPolicy.KEEP
    loss: LossConfig = LossConfig()


@dataclass(kw_only=True, frozen=True, config=STRICT)
class BertScoreConfig:
    """The encoder behind the semantic half of `reward.answer.kind=mixed`."""

    model: str | None = None  # encoder folder or hub id; null: its weight goes to ROUGE and BLEU, loudly
    num_layers: PositiveInt = 12  # the layer whose vectors are compared; at most what the encoder has
    placement: EncoderPlacement = EncoderPlacement.IN_PROCESS
    batch_size: PositiveInt = 64


@dataclass(kw_only=True, frozen=True, config=STRICT)
class AnswerConfig:
    """The answer's reward."""

    kind: AnswerKind = AnswerKind.EXACT
    bertscore: BertScoreConfig = BertScoreConfig()


@dataclass(kw_only=True, frozen=True, config=STRICT)
class RewardConfig:
    """Rewards of one completion (algorithm §2) and their weights."""

    answer: AnswerConfig = AnswerConfig()
    answer_weight: NonNegative = 1.0
    process_weight: NonNegative = 1.0
    step_count_weight: NonNegative = 1.0
    min_steps: NonNegativeInt = 4
    max_steps: PositiveInt = 10


@dataclass(kw_only=True, frozen=True, config=STRICT)
class RolloutConfig:
    """Sampling and the vLLM engines."""

    num_engines: PositiveInt = 1
    prompts_per_step: PositiveInt = 8
    group_size: Annotated[int, Field(ge=2)] = 8
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 1.0
    max_new_tokens: PositiveInt = 96
    max_model_len: PositiveInt = 256  # prompt with image tokens, and completion
    max_num_seqs: PositiveInt = 128  # per engine
    tensor_parallel: PositiveInt = 1
    gpu_memory_utilization: Share = 0.85
    kv_cache_gib: PositiveInt = 1  # CPU engines
    enforce_eager: bool = True
    dtype: Dtype = Dtype.AUTO
    cpu_cores: str | None = None  # cores the engine's threads are bound to, e.g. "0" or "0-3"; null: no binding
    max_staleness: NonNegativeInt = 0  # policy versions a completion may lag behind the learner; 0: strictly on-policy
    start_timeout_s: Positive = 300.0
    stall_timeout_s: Positive = 120.0  # no completion for so long while some are due: the run stops


@dataclass(kw_only=True, frozen=True, config=STRICT)
class LearnerConfig:
    """DeepSpeed and the optimizer."""

    num_ranks: PositiveInt = 1
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    cpu_offload: bool = False
    gradient_checkpointing: bool = False
    dtype: Dtype = Dtype.AUTO
    lr: Positive = 4e-4  # peak, AdamW
    lr_final_share: Share = 0.0  # the linear schedule ends at this share of lr
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegative = 0.0
    adam_betas: tuple[Share, Share] = (0.9, 0.999)
    adam_eps: Positive = 1e-8
    max_grad_norm: Positive = 1.0
    tokens_per_micro_batch: PositiveInt = 4096  # prompt and completion, padding included
    logprob_chunk_tokens: PositiveInt = 2048  # tokens whose logits exist at one time
    num_threads: NonNegativeInt = 0  # torch threads of a rank on CPU; 0: the machine's cores shared among the ranks
    bucket_mib: Positive = 64.0  # weights are published in buckets of about this size
    start_timeout_s: Positive = 300.0


@dataclass(kw_only=True, frozen=True, config=STRICT)
class OracleConfig:
    """Faults the local oracle server can be told to show (tests, demonstrations)."""

    latency_s: NonNegative = 0.0
    error_rate: Share = 0.0  # share of requests answered with 500
    rate_limit_rate: Share = 0.0  # share answered with 429
    garbage_rate: Share = 0.0  # share answered with text that is not the asked JSON


@dataclass(kw_only=True, frozen=True, config=STRICT)
class LexicalConfig:
    """When the local judge that compares words says yes. It knows no medicine: for smoke tests only."""

    min_step_overlap: Share = 0.6  # share of a step's content words that the gold rationale holds
    min_answer_f1: Share = 0.8  # F1 of the content words of generated and gold answer


@dataclass(kw_only=True, frozen=True, config=STRICT)
class JudgeConfig:
    """The judge of steps and answers, and its pool."""

    kind: JudgeKind = JudgeKind.ORACLE
    url: str | None = None  # base URL of an OpenAI-compatible endpoint, ending in /v1
    model: str | None = None
    api_key_env: str = "MRPO_JUDGE_API_KEY"  # environment variable that holds the key; never the key itself
    on_premises: bool = False  # the endpoint is yours: data that must not leave the house may be sent to it
    num_actors: PositiveInt = 1
    concurrency: PositiveInt = 64  # calls in flight, over all actors
    requests_per_minute: PositiveInt | None = None  # over all actors; null: no limit
    tokens_per_minute: PositiveInt | None = None
    deadline_s: Positive = 60.0  # of one call, its retries included
    max_attempts: PositiveInt = 4
    backoff_s: Positive = 0.5  # first pause; doubles, jittered, up to backoff_max_s
    backoff_max_s: Positive = 20.0
    max_completion_tokens: PositiveInt = 2048
    temperature: NonNegative | None = 0.0  # null: not sent
    send_image: bool = True
    on_failure: JudgeFailurePolicy = JudgeFailurePolicy.EXCLUDE
    noise: Share = 0.0  # chance that a verdict used for training is flipped (an ablation of judge quality)
    max_failure_share: Share = 0.2  # of a step's judged completions; above it the run stops with a checkpoint
    max_requests: PositiveInt | None = None  # hard budget of HTTP requests of the run
    oracle: OracleConfig = OracleConfig()
    lexical: LexicalConfig = LexicalConfig()


@dataclass(kw_only=True, frozen=True, config=STRICT)
class ClusterConfig:
    """The machines."""

    device: Device = Device.CPU
    address: str | None = None  # Ray address; null starts a local Ray
    num_cpus: PositiveInt | None = None  # for the local Ray; null: the machine's
    dashboard: bool = False
    weight_transfer: WeightTransfer = WeightTransfer.SHM
    min_free_memory_gib: NonNegative = 6.0  # on this machine, before anything starts


@dataclass(kw_only=True, frozen=True, config=STRICT)
class ParityConfig:
    """Learner and engine must agree on log-probs before the first step, and after every weight sync."""

    num_completions: PositiveInt = 8
    max_mean_diff: Positive = 1e-3  # nats, mean |Δ| over the sampled tokens
    probe_max_diff: Positive = 1e-2  # nats, mean |Δ| on the fixed probe after each sync


@dataclass(kw_only=True, frozen=True, config=STRICT)
class EvalConfig:
    """Greedy evaluation on held-out questions before, during and after training."""

    before: bool = True
    after: bool = True
    every_steps: NonNegativeInt = 0  # 0: not during training
    num_periodic: PositiveInt | None = None  # questions of an evaluation during training, the first; null: all
    judge: bool = True  # rule on steps too, where a gold rationale exists


@dataclass(kw_only=True, frozen=True, config=STRICT)
class BenchmarkConfig:
    """What `make eval` measures: one model on prepared sets, or what it generated elsewhere."""

    model: str | None = None  # a run folder, a Hugging Face folder or a hub id
    checkpoint: CheckpointChoice = CheckpointChoice.LATEST  # of a run folder
    generations: str | None = None  # JSON, JSONL or Parquet of outputs; no model is loaded then
    name: str | None = None  # of the model in tables; null: after its folder, id or file
    sets: tuple[str, ...] = ()  # prepared by `make data`
    root: str = "data"  # folder that holds a folder of each set
    out: str | None = None  # folder of results; null: one under runs_dir, named after model and settings
    num_questions: PositiveInt | None = None  # of each set, the first; null: all
    chunk_size: PositiveInt = 64  # questions between two writes: what a kill can cost
    compare: tuple[str, ...] = ()  # folders of finished evaluations, to be shown side by side; nothing is measured
    vlmevalkit: bool = False  # also write the sets as VLMEvalKit reads them


@dataclass(kw_only=True, frozen=True, config=STRICT)
class CheckpointConfig:
    """What to keep to resume from."""

    every_steps: NonNegativeInt = 50  # 0: only at the end
    keep_last: PositiveInt = 2
    # With eval.every_steps: the checkpoint that is best at this is kept as well. It is chosen on the questions of
    # data.test_file, so name a validation file there where the test questions are to stay unseen.
    best: BestMetric = BestMetric.ACCURACY


@dataclass(kw_only=True, frozen=True, config=STRICT)
class WandbConfig:
    """Weights & Biases."""

    mode: WandbMode = WandbMode.DISABLED
    project: str = "mrpo"
    entity: str | None = None


@dataclass(kw_only=True, frozen=True, config=STRICT)
class Config:
    """A run. Written resolved into the run folder; holds no secret."""

    experiment: str = "phantom"
    seed: NonNegativeInt = 0
    num_steps: PositiveInt = 140  # optimizer steps
    runs_dir: str = "runs"
    cache_dir: str = "~/.cache/mrpo"  # phantom scans and warm-started toys, by content hash
    resume: str | None = None  # a run folder, or "auto": the newest unfinished run of this experiment
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    reward: RewardConfig = RewardConfig()
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    judge: JudgeConfig = JudgeConfig()
    cluster: ClusterConfig = ClusterConfig()
    parity: ParityConfig = ParityConfig()
    eval: EvalConfig = EvalConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    wandb: WandbConfig = WandbConfig()


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
