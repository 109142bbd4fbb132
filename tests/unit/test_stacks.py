"""Stacks of other processes: they answer while the interpreter's lock is held, and are read when they cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mrpo.stacks import Stacks, innermost, is_actor, kill, stacks_of, waits_in_collective

# `re` holds the interpreter's lock for as long as a match takes, which is for ever here.
BUSY = """
import re
def hold_the_lock():
    print("up", flush=True)
    re.match("(a+)+$", "a" * 64 + "b")
hold_the_lock()
"""
IDLE = (
    "import threading\ndef wait_for_ever():\n    print('up', flush=True)\n    threading.Event().wait()\nwait_for_ever()"
)

ANSWER = """Thread 0x00007f00 (most recent call first):
  File "/opt/venv/lib/python3.11/threading.py", line 327 in wait
  File "/opt/venv/lib/python3.11/site-packages/ray/loop.py", line 5 in poll

Current thread 0x00007f01 (most recent call first):
  File "/opt/venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 2810 in all_reduce
  File "/opt/venv/lib/python3.11/site-packages/deepspeed/comm.py", line 9 in inner
  File "/opt/venv/lib/python3.11/site-packages/deepspeed/comm.py", line 12 in outer
  File "/opt/mrpo/learner/step.py", line 180 in train_step
  File "/opt/mrpo/learner/actor.py", line 90 in step
"""


@contextmanager
def process(code: str, *, answers: bool = True) -> Iterator[int]:
    ready = "from mrpo.stacks import answer_stack_requests\nanswer_stack_requests()\n" if answers else ""
    child = subprocess.Popen([sys.executable, "-c", ready + code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == b"up\n"
        yield child.pid
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_process_that_holds_the_interpreters_lock_tells_where_it_is() -> None:
    with process(BUSY) as pid:
        for _ in range(2):
            found = stacks_of(pid, timeout_s=30.0)
            assert "in hold_the_lock" in found.text and not found.state
            assert found.text.count("most recent call first") == 1, "only what was asked for now"
        assert is_actor(pid)


def test_a_stopped_process_is_named_as_such() -> None:
    with process(IDLE) as pid:
        os.kill(pid, signal.SIGSTOP)
        found = stacks_of(pid, timeout_s=30.0)
        assert found.state == "is stopped (state T)"
        assert not found.text or "wait_for_ever" in found.text, "py-spy may not be allowed to look"
        assert kill(pid), "SIGKILL reaches it all the same"


def test_a_process_that_was_never_asked_to_answer_is_left_alone() -> None:
    with process(IDLE, answers=False) as pid:
        found = stacks_of(pid)
        assert found.state == "cannot be asked"
        assert not kill(pid)
        os.kill(pid, 0)


def test_a_process_that_is_gone() -> None:
    with process(IDLE) as pid:
        pass
    assert stacks_of(pid) == Stacks(text="", state=f"process {pid} is gone")
    assert not kill(pid)


def test_a_message_quotes_the_threads_that_run_this_project() -> None:
    quoted = "all_reduce (distributed/distributed_c10d.py:2810) < inner (deepspeed/comm.py:9)"
    assert innermost(ANSWER) == f"{quoted} < train_step (learner/step.py:180)"
    assert waits_in_collective(ANSWER)
    assert Stacks(text=ANSWER).summary.startswith("in all_reduce")
    others = ANSWER.replace("/opt/mrpo/learner", "/opt/other")
    assert innermost(others, 1) == "all_reduce (distributed/distributed_c10d.py:2810)"
    assert not waits_in_collective(ANSWER.replace("torch/distributed", "torch/nn"))


def test_an_answer_of_py_spy_is_quoted_alike() -> None:
    frames = "    wait (threading.py:327)\n    step (/opt/mrpo/learner/actor.py:90)\n"
    idle = '\nThread 8 (idle): "other"\n    main_loop (ray/worker.py:1066)\n'
    text = f'Process 7: python\n{idle}\nThread 7 (idle): "MainThread"\n{frames}{idle}'
    assert innermost(text) == "wait (threading.py:327) < step (learner/actor.py:90)"


def test_nothing_to_quote() -> None:
    assert innermost("") == ""
    assert Stacks(text="").summary == "no stack"
    assert Stacks(text="", state="is stopped (state T)").summary == "is stopped (state T)"


@pytest.mark.parametrize("path", ["/opt/mrpo/learner/step.py", "rollout/engine.py"])
def test_own_frames_are_known_by_their_package(path: str) -> None:
    heading = "(most recent call first):"
    ours = f'Thread 0x1 {heading}\n  File "{path}", line 1 in ours\n\n'
    text = f'{ours}Thread 0x2 {heading}\n  File "/x/y.py", line 2 in theirs\n'
    assert innermost(text) == f"ours ({'/'.join(Path(path).parts[-2:])}:1)"
