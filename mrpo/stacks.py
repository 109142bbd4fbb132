"""Stacks of processes that are stuck: every actor answers one signal with the frames of all its threads.

`faulthandler` writes them from the signal handler itself, also while a library holds the interpreter's lock, into a
file in memory that another process of the same user finds under /proc. What does not answer (a stopped process, say)
is read by py-spy from outside, where that is installed and allowed.
"""

from __future__ import annotations

import faulthandler
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from mrpo.processes import EXIT_GRACE_S, kill_and_wait

SIGNAL = signal.SIGRTMIN + 5  # a real-time signal: no library that runs here uses one
FILE_NAME = "mrpo-stacks"  # of the file in memory, as /proc shows it
ANSWER_TIMEOUT_S = 5.0
QUIET_S = 0.2  # an answer is whole when nothing was added for so long
PY_SPY_TIMEOUT_S = 20.0
NUM_FRAMES = 3  # quoted in a message, a thread
STATES = {"D": "waits for a device", "T": "is stopped", "t": "is stopped by a debugger", "Z": "has ended"}
_OWN = re.compile(r"(?:^|/)(?:learner|rollout|judge|mrpo)/(?:\w+/)*\w+\.py$")
_THREAD = re.compile(r"^(?:Current thread|Thread) ", re.MULTILINE)
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_PY_SPY_FRAME = re.compile(r"^    (\S+) \((.+):(\d+)\)$", re.MULTILINE)
_answering: list[int] = []  # the file descriptor, once there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorProcess:
    """Where an actor runs. Every pool knows it of its actors; read by whoever asks for stacks."""

    name: str  # as the Ray dashboard shows it
    node_id: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacks:
    """What one process is doing."""

    text: str  # of all threads; empty where nothing could be had
    state: str = ""  # what keeps it from answering, e.g. "is stopped (state T)"

    @property
    def summary(self) -> str:
        """Its state and the innermost frames, in half a line."""
        frames = innermost(self.text)
        return "; ".join(part for part in (self.state, f"in {frames}" if frames else "") if part) or "no stack"


def answer_stack_requests() -> None:
    """Let this process answer `stacks_of`; called at the start of every actor, a second time changes nothing."""
    if not _answering:
        descriptor = os.memfd_create(FILE_NAME)
        faulthandler.register(SIGNAL, file=descriptor, all_threads=True)
        _answering.append(descriptor)


def stacks_of(pid: int, timeout_s: float = ANSWER_TIMEOUT_S) -> Stacks:
    """Stacks of a process of this machine and user.

    Args:
        pid: of any process; one that never called `answer_stack_requests` gets no signal, which would end it.
        timeout_s: that it may take to answer.
    """
    answer = _answer_file(pid)
    problem = "cannot be asked"
    if answer is not None:
        text = _ask(pid, answer, timeout_s)
        if text:
            return Stacks(text=text)
        problem = f"does not answer within {timeout_s:g} s"
    state = _state(pid)
    if state == "Z":
        return Stacks(text="", state=f"process {pid} is gone")
    return Stacks(text=_py_spy(pid), state=f"{STATES[state]} (state {state})" if state in STATES else problem)


def is_actor(pid: int) -> bool:
    """Whether a process of this machine called `answer_stack_requests`: a pid that was given anew is nobody's."""
    return _answer_file(pid) is not None


def kill(pid: int, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
    """End an actor's process of this machine, stopped or not, and wait until it is gone.

    Args:
        pid: of any process; one that never called `answer_stack_requests` is left alone.
        timeout_s: that its end may take: the memory of a GPU is free only then.

    Returns:
        Whether it was there.
    """
    if not is_actor(pid):
        return False
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return False
    kill_and_wait([process], timeout_s, grace_s=EXIT_GRACE_S)
    return True


def innermost(text: str, num_frames: int = NUM_FRAMES) -> str:
    """The innermost frames of the threads that run code of this project, else of the thread that answered.

    Args:
        text: as `stacks_of` gives it.
        num_frames: of one thread; its innermost frames of this project are always among them.

    Returns:
        `wait (threading.py:327) < step (learner/actor.py:88)`, threads parted by `|`; empty where there is none.
    """
    threads = [_frames(part) or _py_spy_frames(part) for part in _THREAD.split(text)]
    threads = [frames for frames in threads if frames]
    own = [frames for frames in threads if any(_OWN.search(file) for file, _, _ in frames)]
    return " | ".join(_quoted(frames, num_frames) for frames in own or threads[-1:])


def waits_in_collective(text: str) -> bool:
    """Whether a thread of this project waits for its peers: they are what keeps it."""
    return any(
        "torch/distributed/" in file for part in _THREAD.split(text) for file, _, _ in _frames(part)[:NUM_FRAMES]
    )


def _quoted(frames: list[tuple[str, str, str]], num_frames: int) -> str:
    own = [number for number, (file, _, _) in enumerate(frames) if _OWN.search(file)]
    first = min(own, default=0)
    shown = frames[:num_frames] if first < num_frames else [*frames[: num_frames - 1], frames[first]]
    return " < ".join(f"{name} ({'/'.join(Path(file).parts[-2:])}:{line})" for file, line, name in shown)


def _frames(part: str) -> list[tuple[str, str, str]]:
    """(file, line, function), innermost first."""
    return _FRAME.findall(part)


def _py_spy_frames(text: str) -> list[tuple[str, str, str]]:
    return [(file, line, name) for name, file, line in _PY_SPY_FRAME.findall(text)]


def _state(pid: int) -> str:
    """The letter of ps; Z where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def _answer_file(pid: int) -> Path | None:
    try:
        for item in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(item).startswith(f"/memfd:{FILE_NAME}"):
                return item
    except OSError:  # it has ended, or is another user's
        return None
    return None


def _ask(pid: int, answer: Path, timeout_s: float) -> str:
    try:
        with answer.open("rb") as file:
            file.seek(0, os.SEEK_END)
            os.kill(pid, SIGNAL)
            deadline, text, quiet_since = time.monotonic() + timeout_s, b"", time.monotonic()
            while time.monotonic() < deadline and _state(pid) not in ("T", "t", "Z"):
                time.sleep(QUIET_S / 4)
                added = file.read()
                if added:
                    text, quiet_since = text + added, time.monotonic()
                elif text and time.monotonic() - quiet_since > QUIET_S:
                    break
    except OSError:  # it ended meanwhile
        return ""
    return text.decode("utf-8", "replace")


def _py_spy(pid: int) -> str:
    """From outside, without pausing it; empty where py-spy is not there or may not."""
    program = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if program is None:
        return ""
    try:
        found = subprocess.run(
            [program, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            text=True,
            timeout=PY_SPY_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ""
    return found.stdout
