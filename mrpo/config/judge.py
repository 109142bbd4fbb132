"""The judge of steps and answers, its pool and its limits."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from mrpo.choices import JudgeFailurePolicy, JudgeKind
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
