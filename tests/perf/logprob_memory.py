"""`python -m tests.perf.logprob_memory`: peak memory of the log-probs in chunks, against all logits at once.

Peaks are those of the resident set, in a process of its own for each variant, above what it held just before. Given in
units of one chunk's float32 logits, and beyond what any form needs: the gradients of states and head, once each. Exits
with 1 where a form in chunks is above its bound.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from learner.logprobs import token_logprobs
from mrpo.config import LearnerConfig

logger = logging.getLogger("bench")
TOKENS, VOCABULARY = 8192, 152_000
SMALL, LARGE = 64, 3584  # hidden sizes: the head is small beside the logits; the head is that of a model of 7B
FLOAT32_BYTES = 4
CHUNK_TOKENS = LearnerConfig().logprob_chunk_tokens
NAIVE_COPIES = 3.1  # of the logits, that the naive form holds with its backward pass
BOUNDS = {"forward": 2.0, "backward": 4.0}  # of the forms in chunks
# A block above the threshold is given back to the system when it is freed, so that the resident set follows the live
# tensors. Naming the threshold also stops glibc from raising it after the first large block; one arena, because
# threads would keep freed blocks in theirs.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_ARENA_MAX": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """One variant, measured."""

    form: str  # naive: all logits at once; plain, module: in chunks, with a head that is read, one that is called
    upto: str  # a pass, of BOUNDS
    tokens: int
    hidden_size: int
    peak_bytes: int  # above the state before the forward pass
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

    @property
    def above_bound(self) -> bool:
        """Whether a form in chunks needs more than it may."""
        return self.form != "naive" and self.chunks > BOUNDS[self.upto]


def measure() -> Iterator[Peak]:
    """Both passes of each form with a small head; then, with a large one, of the forms in chunks.

    The naive form needs 15 GiB; it gets fewer tokens where three quarters of the free memory are less. Its memory
    grows with the tokens and not with the head, so that bytes a token can still be compared. With a large head, whose
    products take minutes, the called head gets two chunks, which are enough to hold a sum, a summand and a new sum.
    """
    free = _read_kib(Path("/proc/meminfo"), "MemAvailable")
    most = int(0.75 * free / (NAIVE_COPIES * VOCABULARY * FLOAT32_BYTES))
    yield from _in_own_process("naive", min(TOKENS, most), SMALL)
    for form, tokens, hidden_size in [
        ("plain", TOKENS, SMALL),
        ("module", TOKENS, SMALL),
        ("plain", CHUNK_TOKENS, SMALL),
        ("plain", TOKENS, LARGE),
        ("module", 2 * CHUNK_TOKENS, LARGE),
        ("plain", CHUNK_TOKENS, LARGE),
    ]:
        yield from _in_own_process(form, tokens, hidden_size)


def report() -> bool:
    """Measure, log a line for each variant, and say whether all are within their bounds."""
    logger.info(
        "peak memory of log-probs, vocabulary %d, in float32 logits of one chunk of %d tokens", VOCABULARY, CHUNK_TOKENS
    )
    naive: dict[str, float] = {}
    within = True
    for peak in measure():
        if peak.form == "naive":
            naive[peak.upto] = peak.beyond_bytes / peak.tokens
        logger.info(
            "  %-6s %-8s %5d tokens  hidden %4d  %6.2f chunks  %6.2f GiB  own %5.2f GiB  %6.3f of naive  %6.1f s%s",
            peak.form,
            peak.upto,
            peak.tokens,
            peak.hidden_size,
            peak.chunks,
            peak.beyond_bytes / 2**30,
            peak.own_bytes / 2**30,
            peak.beyond_bytes / peak.tokens / naive[peak.upto],
            peak.seconds,
            f"  ABOVE THE BOUND of {BOUNDS[peak.upto]:g}" if peak.above_bound else "",
        )
        within = within and not peak.above_bound
    return within


def _in_own_process(form: str, tokens: int, hidden_size: int) -> list[Peak]:
    command = [sys.executable, "-m", "tests.perf.logprob_memory", form, str(tokens), str(hidden_size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | MALLOC)
    return [Peak(form=form, tokens=tokens, hidden_size=hidden_size, **fields) for fields in json.loads(done.stdout)]


def _measure_here(form: str, tokens: int, hidden_size: int) -> Iterator[dict[str, str | int | float]]:
    """What a `Peak` tells of each pass, measured in this process, which does nothing else."""
    torch.manual_seed(0)
    head = nn.Linear(hidden_size, VOCABULARY, bias=False)
    hidden = torch.randn(tokens, hidden_size, requires_grad=True)
    targets = torch.randint(VOCABULARY, (tokens,))
    logprobs_of = _naive if form == "naive" else _chunked
    called = nn.Sequential(head) if form == "module" else head
    # Threads and the buffers of the matrix library exist before the measurement.
    logprobs_of(hidden[:32], targets[:32], called).sum().backward()
    head.weight.grad = hidden.grad = None

    before = _read_kib(Path("/proc/self/status"), "VmRSS")
    logprobs = None
    for upto in BOUNDS:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present value
        started = time.perf_counter()
        if logprobs is None:
            logprobs = logprobs_of(hidden, targets, called)
        else:
            logprobs.sum().backward()
        seconds = time.perf_counter() - started
        peak = _read_kib(Path("/proc/self/status"), "VmHWM") - before
        own = sum(tensor.grad.nbytes for tensor in (hidden, head.weight) if tensor.grad is not None)
        yield {"upto": upto, "peak_bytes": peak, "own_bytes": own, "seconds": seconds}


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
    """Without arguments the whole report; with form, tokens and hidden size one measurement, as JSON."""
    if arguments := sys.argv[1:]:
        form, tokens, hidden_size = arguments
        sys.stdout.write(json.dumps(list(_measure_here(form, int(tokens), int(hidden_size)))))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    return 0 if report() else 1


if __name__ == "__main__":
    sys.exit(main())
