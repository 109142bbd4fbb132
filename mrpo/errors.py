"""The one error tree: `UserError` is what a user can mend, everything else is a bug or a fault of the machine."""

from __future__ import annotations

from collections.abc import Sequence

NUM_NAMED = 3  # rows in a message


class MRPOError(Exception):
    """Base of every error this project raises on purpose. All are picklable: the arguments are the state."""


class UserError(MRPOError, ValueError):
    """Bad input: the message says what, got, expected and what to do. Commands print it in one line and exit with 2."""


class ConfigError(UserError):
    """An unknown key, a wrong type or a contradiction in the configuration."""


class DataError(UserError):
    """A missing or unreadable file, or a bad row in one. The message names file, row and field."""


class ResourceError(UserError):
    """The machine or cluster has too little memory, too few GPUs, or no place to write."""


class ClusterError(UserError):
    """No Ray cluster answers where one is named, or it does not take the job."""


class JudgeUnavailableError(UserError):
    """The judge did not answer before the run began, or more judgements failed than the configuration allows."""


class JudgeBudgetError(UserError):
    """The run's budget for the judge (`judge.max_requests`, `max_tokens` or `max_cost`) is spent."""


class NothingToDoError(MRPOError):
    """What is asked for is done already. Commands say so and exit with 0."""


class ParityError(MRPOError):
    """Learner and engine disagree on the log-probs of the same tokens by more than the configured bound."""


class EngineError(MRPOError):
    """A rollout engine did not start, died, or stopped answering. The message names it and its log."""


class LearnerLostError(MRPOError):
    """A learner rank died: the group must be started again from a checkpoint."""

    def __init__(self, message: str, who: str = "learner") -> None:
        """Say what happened, and to which actor as the Ray dashboard names it."""
        super().__init__(message, who)
        self.who = who

    def __str__(self) -> str:
        return str(self.args[0])


class LearnerStuckError(LearnerLostError):
    """A stage of the learner is over its deadline. The message names the rank, the stage and what it is doing."""


class WeightSyncError(MRPOError):
    """A weight bucket arrived damaged, or an engine did not answer like the learner after an update."""


class ReceiverLostError(WeightSyncError):
    """An engine was lost, or broke, while it received weights: they can be sent again without it."""


class NonFiniteError(MRPOError):
    """A NaN or Inf in log-probs, advantages, loss or gradient. The message names the completion where one is known."""


def first_few(faults: Sequence[str]) -> str:
    """The first of what a message names, and how many more there are."""
    more = f" (and {len(faults) - NUM_NAMED} more)" if len(faults) > NUM_NAMED else ""
    return "; ".join(faults[:NUM_NAMED]) + more
