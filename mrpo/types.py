"""What travels between controller, rollout, judge and learner. Frozen, picklable, no torch.

Letters: T completion tokens, P prompt tokens, K reasoning steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One question about one image. Made by `mrpo.data`, read by the controller."""

    id: str
    image: str  # absolute path of a readable image file
    question: str
    answer: str
    rationale: str | None  # gold reasoning; None: the question is never judged
    dataset: str
    split: str
    license: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One reasoning step: `completion_text[start:end] == text`."""

    text: str
    start: int
    end: int


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"  # the policy ended its turn
    TRUNCATED = "truncated"  # the token limit cut it


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """One completion to sample. Controller → rollout."""

    prompt_id: str
    sample_index: int  # 0 … group_size - 1
    question: str
    image: str  # path
    seed: int  # of this request alone, so that results do not depend on arrival order
    temperature: float  # 0: greedy
    top_p: float
    max_new_tokens: int

    @property
    def key(self) -> str:
        """The completion's name in logs, errors and the run folder."""
        return f"{self.prompt_id}#{self.sample_index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished completion with everything that is found once, when it ends. Rollout → controller."""

    prompt_id: str
    sample_index: int
    prompt_token_ids: list[int]  # [P], image placeholders expanded as the engine saw them
    completion_token_ids: list[int]  # [T]
    rollout_logprobs: list[float]  # [T], nats, raw: before temperature and token bans
    text: str  # decoded from completion_token_ids, special tokens left out
    steps: list[Step]  # [K]
    spans: list[tuple[int, int]]  # [K] half-open token ranges, may be empty
    answer: str | None  # text of the last closed answer tag after the last think block
    think_tokens: int  # tokens inside closed think blocks; with `step_tokens` gives steps/token_coverage
    step_tokens: int  # of these, how many belong to a step
    finish_reason: FinishReason
    policy_version: int
    started_s: float  # time.time() on the engine's host
    ended_s: float

    @property
    def key(self) -> str:
        """The completion's name in logs, errors and the run folder."""
        return f"{self.prompt_id}#{self.sample_index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """One completion to judge: one HTTP call. Controller → judge."""

    key: str
    image: str  # path
    question: str
    answer: str  # gold
    rationale: str  # gold
    steps: list[str]  # [K], K ≥ 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """The judge's ruling on every step. Never made up: a judge that failed gives a `JudgeFailure`."""

    alignment: list[bool]  # [K]
    contribution: list[bool]  # [K]

    def __post_init__(self) -> None:
        assert len(self.alignment) == len(self.contribution)

    @property
    def valid(self) -> list[bool]:
        """[K]: a step is valid when it aligns with the gold rationale or contributes to the answer."""
        return [a or c for a, c in zip(self.alignment, self.contribution, strict=True)]


class FailureReason(StrEnum):
    """Why there are no verdicts."""

    TIMEOUT = "timeout"
    TRANSPORT = "transport"
    RATE_LIMITED = "rate_limited"
    REFUSED = "refused"
    BAD_JSON = "bad_json"
    WRONG_COUNT = "wrong_count"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeFailure:
    """No ruling, and why. It is not a score of zero."""

    reason: FailureReason
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one judge call came to. Judge → controller."""

    key: str
    outcome: Verdicts | JudgeFailure
    started_s: float  # time.time() when the call was handed to the judge actor
    ended_s: float
    attempts: int  # HTTP requests made; 0 for a cache hit
    sent_s: float | None = None  # time.time() of the first of them, after the wait for a free slot; None: not known
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str | None = None  # that replied, now or when the ruling was kept; None: none did, or not told
    rubric: str | None = None  # version of the rubric that went with the request; None: not told


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """One answer to judge: one HTTP call. Controller → judge."""

    key: str
    image: str  # path
    question: str
    answer: str  # gold
    generated: str  # the policy's answer, not empty


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerJudgement:
    """What one call about an answer came to. Judge → controller."""

    key: str
    outcome: bool | JudgeFailure  # whether the generated answer is correct
    started_s: float  # time.time() when the call was handed to the judge actor
    ended_s: float
    attempts: int  # HTTP requests made; 0 for a cache hit
    sent_s: float | None = None  # time.time() of the first of them, after the wait for a free slot; None: not known
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str | None = None  # that replied, now or when the ruling was kept; None: none did, or not told
    rubric: str | None = None  # version of the rubric that went with the request; None: not told


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSample:
    """All the learner knows of a completion: tokens, pixels and per-token advantages. Controller → learner."""

    key: str
    image: str | None  # path; None: the prompt is text alone
    prompt_token_ids: list[int]  # [P]
    completion_token_ids: list[int]  # [T]
    advantages: list[float]  # [T]
    rollout_logprobs: list[float]  # [T]
    policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSample:
    """Tokens whose log-probs are wanted (parity gate, probe). Controller → learner."""

    key: str
    image: str | None
    prompt_token_ids: list[int]
    completion_token_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDepth:
    """One engine at one moment. Rollout pool → metrics."""

    name: str  # of its place in the pool, the same through all restarts, e.g. "engine-0"
    state: str  # a value of `rollout.engine_slot.SlotState`
    running: int  # requests that it has, up to as many as it runs at once
    waiting: int  # the others that it has


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeDepths:
    """Calls of the judge's pool at one moment. Pool → metrics."""

    waiting: int  # for a slot, for an endpoint, for a turn under a budget
    in_flight: int  # with a slot, as far as the pool knows


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSample:
    """One demonstration for supervised training. Composition root → learner."""

    image: str | None  # path; None: a question in text alone
    question: str
    target: str  # the whole completion, without the end-of-turn token


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnStats:
    """What one optimizer step came to. Learner → controller."""

    loss: float
    kl: float  # mean over tokens, nats, the configured estimator against the reference; 0 without one
    clip_share: float  # share of tokens at which the clip was active
    entropy: float  # mean over tokens, nats
    grad_norm: float  # before clipping
    lr: float
    num_tokens: int  # completion tokens that got gradient
    num_micro_batches: int
    seconds: float
    extra: dict[str, float] = field(default_factory=dict)
