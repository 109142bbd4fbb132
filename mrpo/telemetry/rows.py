"""Every metric of a run. Prometheus names, the Grafana dashboard and the tables of docs/metrics.md follow from here."""

from __future__ import annotations

from mrpo.telemetry.table import Kind, Row, Stage, Table, Unit

G, C, H = Kind.GAUGE, Kind.COUNTER, Kind.HISTOGRAM
ENGINE = ("engine",)
CALL_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
REQUEST_BUCKETS_S = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)

RUN = (
    Row("run/state", Unit.STATE, G, Stage.RUN, "1 for what the run does at present, 0 for the rest", True, ("state",)),
    Row("run/step", Unit.STEPS, G, Stage.RUN, "optimizer steps done; goes back where a run is rewound", live=True),
    Row("run/planned", Unit.STEPS, G, Stage.RUN, "optimizer steps of the whole run", live=True),
)
TIME = (
    Row("time/step_s", Unit.SECONDS, G, Stage.TIME, "the whole step"),
    Row("time/rollout_s", Unit.SECONDS, G, Stage.TIME, "first request handed out to last completion ended"),
    Row("time/judge_s", Unit.SECONDS, G, Stage.TIME, "judging that generation does not hide"),
    Row("time/learn_s", Unit.SECONDS, G, Stage.TIME, "the optimizer step"),
    Row("time/sync_s", Unit.SECONDS, G, Stage.TIME, "new weights to the engines, and their proof"),
    Row("time/stage_s", Unit.SECONDS, G, Stage.TIME, "the newest finished stage of each name", True, ("stage",)),
)
ROLLOUT = (
    Row("rollout/tokens_per_s", Unit.TOKENS_PER_SECOND, G, Stage.ROLLOUT, "sampled tokens over the time of rollout"),
    Row("rollout/tokens", Unit.TOKENS, C, Stage.ROLLOUT, "sampled"),
    Row("rollout/completions", Unit.COMPLETIONS, C, Stage.ROLLOUT, "sampled"),
    Row("rollout/staleness", Unit.VERSIONS, G, Stage.ROLLOUT, "updates since the weights that sampled, mean"),
    Row("rollout/staleness_max", Unit.VERSIONS, G, Stage.ROLLOUT, "the same, largest"),
    Row("rollout/engines", Unit.ENGINES, G, Stage.ROLLOUT, "by state", True, ("state",)),
    Row(
        "rollout/waiting",
        Unit.REQUESTS,
        G,
        Stage.ROLLOUT,
        "with an engine, for their turn; with none, for one",
        True,
        ENGINE,
    ),
    Row("rollout/running", Unit.REQUESTS, G, Stage.ROLLOUT, "of an engine, being sampled", True, ENGINE),
    Row("rollout/waiting_max", Unit.REQUESTS, G, Stage.ROLLOUT, "with or without an engine, largest of the samples"),
    Row("rollout/running_max", Unit.REQUESTS, G, Stage.ROLLOUT, "of all engines, largest of the step's samples"),
    Row("rollout/request_s", Unit.SECONDS, H, Stage.ROLLOUT, "one completion", buckets=REQUEST_BUCKETS_S),
    Row("completion/tokens", Unit.TOKENS, G, Stage.ROLLOUT, "of a completion, mean"),
    Row("completion/tokens_max", Unit.TOKENS, G, Stage.ROLLOUT, "of the longest completion"),
    Row("completion/truncated", Unit.COMPLETIONS, C, Stage.ROLLOUT, "cut by rollout.max_new_tokens"),
    Row("completion/truncated_share", Unit.SHARE, G, Stage.ROLLOUT, "of completions, cut"),
    Row("completion/answered_share", Unit.SHARE, G, Stage.ROLLOUT, "of completions with an answer"),
    Row("completion/repetition", Unit.SHARE, G, Stage.ROLLOUT, "of n-grams that repeat an earlier one, mean"),
    Row("answer/words", Unit.WORDS, G, Stage.ROLLOUT, "of an answer, mean"),
    Row("steps/count", Unit.STEPS, G, Stage.ROLLOUT, "of reasoning in a completion, mean"),
    Row("steps/none_share", Unit.SHARE, G, Stage.ROLLOUT, "of completions without a reasoning step"),
    Row("steps/repeated_share", Unit.SHARE, G, Stage.ROLLOUT, "of reasoning steps that repeat an earlier one, mean"),
    Row("steps/token_coverage", Unit.SHARE, G, Stage.ROLLOUT, "of thinking tokens that lie in a reasoning step"),
)
JUDGE = (
    Row("judge/waiting", Unit.CALLS, G, Stage.JUDGE, "without a slot yet", live=True),
    Row("judge/in_flight", Unit.CALLS, G, Stage.JUDGE, "with a slot", live=True),
    Row("judge/waiting_max", Unit.CALLS, G, Stage.JUDGE, "without a slot, largest of the step's samples"),
    Row("judge/in_flight_max", Unit.CALLS, G, Stage.JUDGE, "with a slot, largest of the step's samples"),
    Row("judge/call_s", Unit.SECONDS, H, Stage.JUDGE, "one call, first request to ruling", buckets=CALL_BUCKETS_S),
    Row("judge/queue_s", Unit.SECONDS, G, Stage.JUDGE, "wait for a slot and the rate limit, mean"),
    Row("judge/latency_s", Unit.SECONDS, G, Stage.JUDGE, "first request to ruling, retries included, mean"),
    Row("judge/latency_max_s", Unit.SECONDS, G, Stage.JUDGE, "the same, longest"),
    Row("judge/overlap_share", Unit.SHARE, G, Stage.JUDGE, "of judging time that generation hides"),
    Row("judge/asked", Unit.CALLS, C, Stage.JUDGE, "about steps"),
    Row("judge/answers_asked", Unit.CALLS, C, Stage.JUDGE, "about answers"),
    Row("judge/requests", Unit.REQUESTS, C, Stage.JUDGE, "over HTTP, retries included"),
    Row("judge/tokens", Unit.TOKENS, C, Stage.JUDGE, "of prompts and replies"),
    Row("judge/cost", Unit.CURRENCY, C, Stage.JUDGE, "by judge.prices"),
    Row("judge/budget_left_share", Unit.SHARE, G, Stage.JUDGE, "of the tightest budget"),
    Row("judge/failure_share", Unit.SHARE, G, Stage.JUDGE, "of step calls without a ruling"),
    Row("judge/answer_failure_share", Unit.SHARE, G, Stage.JUDGE, "of answer calls without a ruling"),
    Row("judge/failures/{reason}", Unit.FAILURES, C, Stage.JUDGE, "calls without a ruling, by reason"),
    Row("judge/outage_s", Unit.SECONDS, C, Stage.JUDGE, "in which no endpoint was to be asked"),
    Row("judge/cache_hits", Unit.LOOKUPS, C, Stage.JUDGE, "that found a ruling"),
    Row("judge/cache_misses", Unit.LOOKUPS, C, Stage.JUDGE, "that found none"),
    Row("judge/cache_corrupt", Unit.LOOKUPS, C, Stage.JUDGE, "that found a damaged ruling"),
    Row("judge/cache_changed", Unit.LOOKUPS, C, Stage.JUDGE, "that found two rulings on one call"),
    Row("judge/cache_read_errors", Unit.LOOKUPS, C, Stage.JUDGE, "that could not be made"),
    Row("judge/cache_write_errors", Unit.LOOKUPS, C, Stage.JUDGE, "whose ruling could not be kept"),
    Row("judge/canary_steps", Unit.STEPS, C, Stage.JUDGE, "of canaries that were ruled on"),
    Row("judge/canary_error_rate", Unit.SHARE, G, Stage.JUDGE, "of these, ruled wrong"),
    Row("judge/canary_failures", Unit.CALLS, C, Stage.JUDGE, "about canaries, without a ruling"),
    Row("judge/flipped_share", Unit.SHARE, G, Stage.JUDGE, "of verdicts made wrong on purpose (judge.noise)"),
)
REWARD = (
    Row("reward/mean", Unit.NONE, G, Stage.REWARD, "all parts, weighted"),
    Row("reward/answer", Unit.NONE, G, Stage.REWARD, "for the answer"),
    Row("reward/process", Unit.NONE, G, Stage.REWARD, "for the steps"),
    Row("reward/step_count", Unit.NONE, G, Stage.REWARD, "for their number"),
    Row("accuracy", Unit.SHARE, G, Stage.REWARD, "of answers that are right"),
    Row("cascade/early_share", Unit.SHARE, G, Stage.REWARD, "of judged completions that first fail early"),
    Row("cascade/early_share_failing", Unit.SHARE, G, Stage.REWARD, "of failing completions that first fail early"),
    Row("cascade/failing_share", Unit.SHARE, G, Stage.REWARD, "of judged completions with an invalid step"),
    Row("steps/valid_share", Unit.SHARE, G, Stage.REWARD, "of judged steps that are valid"),
    Row("steps/valid_share_at/{position}", Unit.SHARE, G, Stage.REWARD, "of judged steps at a position, valid"),
    Row("groups/count", Unit.GROUPS, G, Stage.REWARD, "of completions of one prompt"),
    Row("groups/dropped", Unit.GROUPS, G, Stage.REWARD, "with fewer than two completions to compare"),
    Row("groups/constant", Unit.GROUPS, G, Stage.REWARD, "of equal rewards, which teach nothing"),
    Row("groups/answer_only", Unit.GROUPS, G, Stage.REWARD, "without a process reward"),
    Row("groups/answer_only_no_rationale", Unit.GROUPS, G, Stage.REWARD, "of these, without a gold rationale"),
    Row("groups/answer_only_judge_failed", Unit.GROUPS, G, Stage.REWARD, "of these, after failed judgements"),
    Row("advantage/abs", Unit.NONE, G, Stage.REWARD, "size of a token's advantage, mean"),
)
LEARNER = (
    Row("policy/loss", Unit.NONE, G, Stage.LEARNER, "policy loss"),
    Row("policy/kl", Unit.NATS, G, Stage.LEARNER, "to the reference, a token"),
    Row("policy/clip_share", Unit.SHARE, G, Stage.LEARNER, "of tokens at which the clip was active"),
    Row("policy/entropy", Unit.NATS, G, Stage.LEARNER, "a token"),
    Row("policy/grad_norm", Unit.NONE, G, Stage.LEARNER, "before clipping"),
    Row("policy/lr", Unit.NONE, G, Stage.LEARNER, "learning rate"),
    Row("policy/tokens", Unit.TOKENS, C, Stage.LEARNER, "that got gradient"),
    Row("policy/micro_batches", Unit.BATCHES, G, Stage.LEARNER, "of a rank"),
    Row("policy/ratio_mean", Unit.RATIO, G, Stage.LEARNER, "of new to old probability, mean"),
    Row("policy/ratio_max", Unit.RATIO, G, Stage.LEARNER, "of new to old probability, largest"),
    Row("policy/importance_mean", Unit.RATIO, G, Stage.LEARNER, "weight of the off-policy correction, mean"),
    Row("policy/importance_clip_share", Unit.SHARE, G, Stage.LEARNER, "of tokens whose weight was capped or masked"),
    Row("policy/importance_diff", Unit.NATS, G, Stage.LEARNER, "learner to sampler, mean"),
    Row("policy/importance_diff_max", Unit.NATS, G, Stage.LEARNER, "learner to sampler, largest"),
    Row("policy/dropped_vision_token", Unit.COMPLETIONS, C, Stage.LEARNER, "left out: they hold a vision token"),
    Row("policy/skipped_update", Unit.STEPS, C, Stage.LEARNER, "in which nothing was left to learn from"),
    Row("policy/gpu_memory_bytes", Unit.BYTES, G, Stage.LEARNER, "peak of a rank in the step; absent without a GPU"),
)
SYNC = (
    Row("sync/publish_s", Unit.SECONDS, G, Stage.SYNC, "the transfer alone, as the learner measures it"),
    Row("sync/bytes", Unit.BYTES, C, Stage.SYNC, "sent to each engine"),
    Row("sync/buckets", Unit.BUCKETS, C, Stage.SYNC, "sent to each engine"),
)
FAULTS = (
    Row("faults/{kind}", Unit.FAULTS, C, Stage.FAULTS, "noticed, by kind", at_once=True),
    Row("faults/recovery_s", Unit.SECONDS, C, Stage.FAULTS, "of recoveries that ended, added up", at_once=True),
)
CHECKPOINT = (
    Row("checkpoint/blocked_s", Unit.SECONDS, G, Stage.CHECKPOINT, "for which training waited for the newest one"),
    Row("checkpoint/write_s", Unit.SECONDS, G, Stage.CHECKPOINT, "of writing the newest one, beside training"),
)
EVALUATION = (
    Row("eval/questions", Unit.QUESTIONS, G, Stage.EVALUATION, "asked"),
    Row("eval/correct", Unit.QUESTIONS, G, Stage.EVALUATION, "answered right"),
    Row("eval/judged", Unit.COMPLETIONS, G, Stage.EVALUATION, "with verdicts on their steps"),
    Row("eval/judge_failed", Unit.COMPLETIONS, G, Stage.EVALUATION, "without: the judge failed"),
    Row("eval/answer_judge_failed", Unit.COMPLETIONS, G, Stage.EVALUATION, "whose answer the judge did not rate"),
    Row("eval/without_steps", Unit.COMPLETIONS, G, Stage.EVALUATION, "without a reasoning step"),
    Row("eval/truncated", Unit.COMPLETIONS, G, Stage.EVALUATION, "cut by rollout.max_new_tokens"),
)
INTERVALS = (  # each with its 95 % interval beside it, as `_low` and `_high`
    ("eval/accuracy", Unit.SHARE, "of questions answered right"),
    ("eval/early_share", Unit.SHARE, "of judged completions that first fail early"),
    ("eval/early_share_failing", Unit.SHARE, "of failing completions that first fail early"),
    ("eval/mid_share_failing", Unit.SHARE, "of failing completions that first fail in the middle"),
    ("eval/late_share_failing", Unit.SHARE, "of failing completions that first fail late"),
    ("eval/valid_share", Unit.SHARE, "of judged steps that are valid"),
    ("eval/valid_steps", Unit.STEPS, "valid in a judged completion, mean"),
    ("eval/steps", Unit.STEPS, "of reasoning in a completion, mean"),
    ("eval/accumulation_rate", Unit.SHARE, "of steps after the first failure that fail as well, mean"),
)
BOUNDS = (("", ""), ("_low", ", lower bound"), ("_high", ", upper bound"))
SUPERVISED = (
    Row("sft/loss", Unit.NATS, G, Stage.SUPERVISED, "a target token"),
    Row("sft/epoch", Unit.EPOCHS, G, Stage.SUPERVISED, "done"),
    Row("heldout/loss", Unit.NATS, G, Stage.SUPERVISED, "a target token of held-out questions"),
)

TABLE = Table(
    (
        *RUN,
        *TIME,
        *ROLLOUT,
        *JUDGE,
        *REWARD,
        *LEARNER,
        *SYNC,
        *FAULTS,
        *CHECKPOINT,
        *EVALUATION,
        *(
            Row(f"{name}{ending}", unit, G, Stage.EVALUATION, f"{description}{bound}")
            for name, unit, description in INTERVALS
            for ending, bound in BOUNDS
        ),
        *SUPERVISED,
    )
)
