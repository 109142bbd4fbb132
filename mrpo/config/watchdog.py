"""How long a stage may take before whoever is in it counts as stuck, and how often a lost learner is started again."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from mrpo.config.fields import STRICT, NonNegativeInt, Positive


@dataclass(kw_only=True, frozen=True, config=STRICT)
class WatchdogConfig:
    """Seconds; a stage over its deadline names the actor with its stack, and the actor is started again.

    Sampling has `rollout.stall_timeout_s`, the transfer of weights `learner.publish_timeout_s`, starting
    `learner.start_timeout_s` and `rollout.start_timeout_s`.
    """

    learn_s: Positive = 1800.0  # one optimizer step
    score_s: Positive = 900.0  # log-probs of a parity check; 16 batches of answers by BERTScore in an actor
    save_s: Positive = 900.0  # a checkpoint's copy to main memory; its write; each and the time for its bytes
    load_s: Positive = 1800.0  # loading one, and the time for its bytes on every node
    min_disk_mib_s: Positive = 20.0  # what the slowest disk moves in a second that is not taken for one that hangs
    judge_s: Positive = 900.0  # one answer of a judge actor, retries included, outages of its endpoint not
    node_poll_s: Positive = 5.0  # between two looks at the cluster's nodes
    no_engine_s: Positive = 1800.0  # with no engine up or starting, until the run ends; resume=auto goes on
    max_restarts: NonNegativeInt = 3  # of a lost or stuck learner, in a row without a new step between them
