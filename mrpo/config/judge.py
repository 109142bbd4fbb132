"""The judge of steps and answers, its pool and its limits."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from mrpo.choices import JudgeFailurePolicy, JudgeKind, OutagePolicy, StructuredReply, TokenLimitField
from mrpo.config.fields import STRICT, NonNegative, Positive, PositiveInt, Share


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
class ProviderConfig:
    """What an endpoint understands; rows are `conf/judge_provider/*.yaml`. Defaults: OpenAI's protocol as published."""

    structured: StructuredReply = StructuredReply.JSON_SCHEMA  # how a reply is held to its form
    token_limit: TokenLimitField = TokenLimitField.MAX_COMPLETION_TOKENS  # the name of the reply's bound
    reasoning_effort: str | None = None  # e.g. "low", sent as it stands; null: not sent
    system_role: bool = True  # false: the rubric travels at the head of the user's message
    image_first: bool = False  # the image goes before the data: an engine that caches prefixes keeps it for all
    # completions of an image, and not only what stands before their steps


@dataclass(kw_only=True, frozen=True, config=STRICT)
class EndpointConfig:
    """One of several endpoints that share the calls."""

    url: str  # base URL, ending in /v1
    model: str
    weight: Positive = 1.0  # share of the calls while all are up
    api_key_env: str | None = None  # null: judge.api_key_env
    api_key_file: str | None = None  # null: judge.api_key_file


@dataclass(kw_only=True, frozen=True, config=STRICT)
class BreakerConfig:
    """When an endpoint gets no calls for a while: its circuit opens, then one probe decides."""

    num_failures: PositiveInt = 5  # in a row, as one judge actor sees them: no connection, 5xx, no reply in time
    cool_down_s: Positive = 10.0  # longest time until a probe; the first ones come sooner


@dataclass(kw_only=True, frozen=True, config=STRICT)
class JudgeCacheConfig:
    """Rulings kept on disk, shared by training and evaluation."""

    enabled: bool = True
    folder: str | None = None  # null: judge/ under cache_dir; may lie on a file system shared by all nodes
    max_mib: Positive = 1024.0  # the rulings longest unused go first


@dataclass(kw_only=True, frozen=True, config=STRICT)
class PriceConfig:
    """What a model costs, in any one currency per million tokens."""

    prompt: NonNegative
    completion: NonNegative
    cached_prompt: NonNegative | None = None  # null: as prompt


@dataclass(kw_only=True, frozen=True, config=STRICT)
class VllmJudgeConfig:
    """A judge served by vLLM for this run (`judge.kind=vllm`), on GPUs of its own where the run has any."""

    model: str | None = None  # Hugging Face folder or hub id
    num_servers: PositiveInt = 1
    tensor_parallel: PositiveInt = 1  # GPUs of one server
    gpu_memory_utilization: Share = 0.9
    max_model_len: PositiveInt = 8192  # rubric, data, image and reply of one call
    start_timeout_s: Positive = 600.0


@dataclass(kw_only=True, frozen=True, config=STRICT)
class JudgeConfig:
    """The judge of steps and answers, and its pool."""

    kind: JudgeKind = JudgeKind.ORACLE
    url: str | None = None  # base URL of an OpenAI-compatible endpoint, ending in /v1
    model: str | None = None
    api_key_env: str = "MRPO_JUDGE_API_KEY"  # environment variable that holds the key; never the key itself
    api_key_file: str | None = None  # a file that holds the key, instead of the variable
    endpoints: tuple[EndpointConfig, ...] = ()  # several, instead of url and model
    provider: ProviderConfig = ProviderConfig()
    on_premises: bool = False  # the endpoint is yours: data that must not leave the house may be sent to it
    num_actors: PositiveInt = 1  # a run begins when one is up; others join when the cluster has room
    resources: dict[str, Positive] = field(default_factory=dict)  # of Ray, claimed by each actor: pins them to nodes
    start_timeout_s: Positive = 120.0  # until the first actor is up
    actor_timeout_s: Positive = 20.0  # an actor that gives no sign of life for so long is killed and started again
    concurrency: PositiveInt = 64  # calls in flight, over all actors
    requests_per_minute: PositiveInt | None = None  # over all actors; null: no limit
    tokens_per_minute: PositiveInt | None = None
    deadline_s: Positive = 60.0  # of one call: its requests and the pauses between them, not the wait for its turn
    max_attempts: PositiveInt = 4  # HTTP requests of one call, a hedge included
    backoff_s: Positive = 0.5  # first pause; doubles, jittered, up to backoff_max_s
    backoff_max_s: Positive = 20.0
    hedge_percentile: Annotated[float, Field(gt=0.0, lt=100.0)] | None = None  # a call slower than this share of recent
    # ones is sent a second time, and the first ruling counts; null: never
    breaker: BreakerConfig = BreakerConfig()
    on_outage: OutagePolicy = OutagePolicy.WAIT
    max_outage_s: Positive = 1800.0  # the longest wait
    max_completion_tokens: PositiveInt = 2048
    temperature: NonNegative | None = 0.0  # null: not sent; some endpoints refuse it
    send_image: bool = True
    on_failure: JudgeFailurePolicy = JudgeFailurePolicy.EXCLUDE
    noise: Share = 0.0  # chance that a verdict used for training is flipped (an ablation of judge quality)
    max_failure_share: Share = 0.2  # of a step's judged completions; above it the run stops with a checkpoint
    cache: JudgeCacheConfig = JudgeCacheConfig()
    max_requests: PositiveInt | None = None  # hard budget of HTTP requests of the run
    max_tokens: PositiveInt | None = None  # hard budget of tokens, as the endpoint counts them
    max_cost: Positive | None = None  # hard budget in the currency of `prices`
    warn_share: Share = 0.8  # of a budget spent: a warning
    prices: dict[str, PriceConfig] = field(default_factory=dict)  # by model
    canary_share: Share = 0.0  # steps with known verdicts sent along, as a share of the completions judged
    canary_alarm_share: Share = 0.2  # of recent canaries ruled wrong: an alarm
    oracle: OracleConfig = OracleConfig()
    lexical: LexicalConfig = LexicalConfig()
    vllm: VllmJudgeConfig = VllmJudgeConfig()
