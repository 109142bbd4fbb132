"""What SIGINT and SIGTERM do to a run, as a real process hears them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

import pytest

from mrpo.stop_signals import StopSignals


class Notes:
    """Where a console's notes go."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def run_with(
    sent: Sequence[signal.Signals], *, training: bool, grace_s: float = 60.0
) -> tuple[StopSignals, bool, bool]:
    """Signals sent to a task; returns them, whether the task was cancelled, and whether it was told to be late."""
    late: list[bool] = []

    async def work() -> None:
        signals.catch()
        signals.on_late = lambda: late.append(True)
        signals.training = training
        for number in sent:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    async def outer() -> bool:
        task = asyncio.create_task(work())
        try:
            await task
        except asyncio.CancelledError:
            return True
        return False

    signals = StopSignals(Notes(), "a checkpoint is saved", grace_s=grace_s)  # type: ignore[arg-type]
    was_cancelled = asyncio.run(outer())
    return signals, was_cancelled, bool(late)


@pytest.mark.parametrize(
    ("sent", "training", "cancelled", "code"),
    [
        ([signal.SIGINT], True, False, 130),
        ([signal.SIGTERM], True, False, 143),
        ([signal.SIGTERM, signal.SIGTERM], True, False, 143),  # as make passes it on
        ([signal.SIGINT, signal.SIGINT], True, True, 130),
        ([signal.SIGTERM, signal.SIGINT], True, True, 143),
        ([signal.SIGINT], False, True, 130),
        ([signal.SIGTERM, signal.SIGTERM], False, True, 143),
    ],
)
def test_the_first_signal_ends_in_order_while_training(
    sent: list[signal.Signals], training: bool, cancelled: bool, code: int
) -> None:
    signals, was_cancelled, late = run_with(sent, training=training)
    assert signals.stop.is_set()
    assert (was_cancelled, signals.exit_code, late) == (cancelled, code, False)
    assert ("preemption" in signals.who) == (code == 143)


@pytest.mark.parametrize(("sent", "late"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_preemption_has_a_grace_period(sent: signal.Signals, late: bool) -> None:
    _, _, was_late = run_with([sent], training=True, grace_s=0.02)
    assert was_late is late
