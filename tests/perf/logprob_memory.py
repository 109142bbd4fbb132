"""`python -m tests.perf.logprob_memory`: peak memory of the log-probs in chunks, against all logits at once.

Peaks are those of the resident set, in a process of its own for each variant, above what it held just before. Given in
units of one chunk's float32 logits, and beyond what any form needs: the gradients of states and head.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from learner.logprobs import token_logprobs
from mrpo.config import LearnerConfig

logger = logging.getLogger("bench")
TOKENS, VOCABULARY, HIDDEN = 8192, 152_000, 64  # a small hidden size keeps the head's part small beside the logits
FLOAT32_BYTES = 4
CHUNK_TOKENS = LearnerConfig().logprob_chunk_tokens
NAIVE_COPIES = 3.1  # of the logits, that the naive form holds with its backward pass
FORMS = ("naive", "chunked")
PASSES = ("forward", "backward")
# A block above the threshold is given back to the system when it is freed, so that the resident set follows the live
# tensors. Naming the threshold also stops glibc from raising it after the first large block; one arena, because
# threads would keep freed blocks in theirs.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """One variant, measured."""

    form: str  # one of FORMS
    upto: str  # one of PASSES; backward: forward and backward
    tokens: int
    peak_bytes: int  # above the state before
    own_bytes: int  # of the gradients of states and head
    seconds: float

    @property
    def beyond_bytes(self) -> int:
        """Bytes that the form itself needs."""
        return self.peak_bytes - self.own_bytes

    @property
    def chunks(self) -> float:
        """The same in units of one chunk's float32 logits."""
        return self.beyond_bytes / (min(self.tokens, CHUNK_TOKENS) * VOCABULARY * FLOAT32_BYTES)


def measure() -> list[Peak]:
    """Each form and pass at TOKENS tokens, then a single chunk.

    The naive form needs 15 GiB; it gets fewer tokens where three quarters of the free memory are less. Its memory
    grows with the tokens, so that bytes a token can still be compared.
    """
    free = _read_kib(Path("/proc/meminfo"), "MemAvailable")
    most = int(0.75 * free / (NAIVE_COPIES * VOCABULARY * FLOAT32_BYTES))
    peaks = [_in_own_process("naive", upto, min(TOKENS, most)) for upto in PASSES]
    peaks += [_in_own_process("chunked", upto, TOKENS) for upto in PASSES]
    return peaks + [_in_own_process("chunked", upto, CHUNK_TOKENS) for upto in PASSES]


def report() -> None:
    """Measure, and log a line for each variant."""
    peaks = measure()
    naive = {peak.upto: peak.beyond_bytes / peak.tokens for peak in peaks if peak.form == "naive"}
    logger.info(
        "peak memory of log-probs, vocabulary %d, in float32 logits of one chunk of %d tokens", VOCABULARY, CHUNK_TOKENS
    )
    for peak in peaks:
        logger.info(
            "  %-8s %-8s %5d tokens  %6.2f chunks  %6.2f GiB  %6.3f of naive  %5.1f s",
            peak.form,
            peak.upto,
            peak.tokens,
            peak.chunks,
            peak.beyond_bytes / 2**30,
            peak.beyond_bytes / peak.tokens / naive[peak.upto],
            peak.seconds,
        )


def _in_own_process(form: str, upto: str, tokens: int) -> Peak:
    command = [sys.executable, "-m", "tests.perf.logprob_memory", form, upto, str(tokens)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | MALLOC)
    return Peak(**json.loads(done.stdout))


def _measure_here(form: str, upto: str, tokens: int) -> dict[str, str | int | float]:
    """Fields of a `Peak`, measured in this process, which does nothing else."""
    torch.manual_seed(0)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    targets = torch.randint(VOCABULARY, (tokens,))
    logprobs_of = {"naive": _naive, "chunked": _chunked}[form]
    # Threads and the buffers of the matrix library exist before the measurement.
    logprobs_of(hidden[:32], targets[:32], head).sum().backward()
    head.weight.grad = hidden.grad = None

    before = _read_kib(Path("/proc/self/status"), "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present value
    started = time.perf_counter()
    logprobs = logprobs_of(hidden, targets, head)
    if upto == "backward":
        logprobs.sum().backward()
    seconds = time.perf_counter() - started
    peak = _read_kib(Path("/proc/self/status"), "VmHWM") - before
    own = sum(tensor.grad.nbytes for tensor in (hidden, head.weight) if tensor.grad is not None)
    return {
        "form": form,
        "upto": upto,
        "tokens": tokens,
        "peak_bytes": peak,
        "own_bytes": own,
        "seconds": seconds,
    }


def _naive(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    log_probs = torch.log_softmax(head(hidden).float(), -1)
    with torch.no_grad():
        torch.einsum("nv,nv->n", log_probs.exp(), log_probs)  # the entropy, which both forms calculate
    return log_probs.gather(1, targets[:, None])[:, 0]


def _chunked(hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    return token_logprobs(hidden, targets, head, chunk_tokens=CHUNK_TOKENS)[0]


def _read_kib(file: Path, name: str) -> int:
    """Bytes of one line of a /proc file that counts in KiB."""
    (kib,) = re.findall(rf"^{name}:\s+(\d+) kB$", file.read_text(), flags=re.MULTILINE)
    return int(kib) * 1024


def main() -> int:
    """Without arguments the whole report; with form, pass and tokens one measurement, as JSON."""
    if arguments := sys.argv[1:]:
        form, upto, tokens = arguments
        sys.stdout.write(json.dumps(_measure_here(form, upto, int(tokens))))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
