"""Steps whose loss or gradient is not finite: skipped once, with what was sampled kept; twice in a row ends the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mrpo.errors import NonFiniteError
from mrpo.faults import Fault, FaultKind, FaultLog

if TYPE_CHECKING:
    from mrpo.scoring import ScoredTrace


class TraceRecorder(Protocol):
    """Where the record is kept (the run folder)."""

    def write_nonfinite(self, step: int, traces: Sequence[ScoredTrace]) -> Path: ...

    def is_skipped(self, step: int) -> bool: ...

    def mark_skipped(self, step: int) -> None: ...


@dataclass(kw_only=True)
class SkippedSteps:
    """Of one run. The learner leaves weights and moments of such a step untouched.

    Which steps were skipped is on record, and rewound with it: it is the same for a run that was killed and resumed.
    """

    recorder: TraceRecorder
    faults: FaultLog
    _open: list[Fault] = field(default_factory=list)

    def skip(self, error: NonFiniteError, step: int, traces: Sequence[ScoredTrace]) -> None:
        """Note a step that the learner refused, and keep its completions.

        Args:
            error: what it found.
            step: number of the step.
            traces: all completions of the step.

        Raises:
            NonFiniteError: the step before was skipped too.
        """
        path = self.recorder.write_nonfinite(step, traces)
        self._open.append(self.faults.begin(FaultKind.NONFINITE_STEP, f"step {step}", f"{error}; completions: {path}"))
        if self.recorder.is_skipped(step - 1):
            raise NonFiniteError(
                f"two steps in a row are not finite, the weights are those of step {step - 2}: step {step}: {error}; "
                f"the completions are in {path.with_name(f'step_{step - 1:05d}.parquet')} and {path}. Lower learner.lr "
                "or learner.max_grad_norm, then go on with resume=<this run>"
            )
        self.recorder.mark_skipped(step)

    def applied(self) -> None:
        """A step was applied."""
        while self._open:
            self.faults.end(self._open.pop())
