"""Rulings kept on disk, so that none is paid for twice; training, evaluation and all runs of a machine share them.

Only rulings are kept, never failures. Whatever is wrong with the cache is a miss: said once, counted, and lived with;
a file system that hangs, too: the folder is then left alone for a while.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from judge.accounting import KnownRuling, LookedUp
from judge.daemon_threads import DaemonThreads
from judge.ruling_file import CorruptRuling, decode, encode
from judge.ruling_folder import RulingFolder
from judge.ruling_key import rubric_version, ruling_key
from mrpo.choices import JudgeKind
from mrpo.config import JudgeConfig
from mrpo.judge_endpoints import endpoint_models
from mrpo.types import AnswerRequest, JudgeRequest, Verdicts

logger = logging.getLogger(__name__)
T = TypeVar("T")

CACHED_KINDS = (JudgeKind.OPENAI_COMPATIBLE, JudgeKind.VLLM)  # local judges are as cheap as a look-up, and exact
FOLDER = "judge"  # under `cache_dir`
NUM_THREADS = 8  # file systems over a network can be slow, and must not hold up the event loop
STALL_S = 10.0  # in which nothing in the folder ends, neither a look-up nor a write: its file system hangs
STALL_LOOKS = 4  # in that time: a process that was held up itself does not take that for a hang
REST_S = 60.0  # for which a folder that hangs is left alone
CLOSE_GRACE_S = 5.0  # for what is being written


class FolderHangs(Exception):
    """The folder's file system does not answer, or did not a moment ago."""


class RulingCache:
    """A `judge.accounting.Rulings` on disk. Use it from one event loop; many processes may share the folder."""

    def __init__(self, config: JudgeConfig, folder: Path) -> None:
        """Open a cache; nothing is read yet.

        Args:
            config: of the judge; its endpoints must be set.
            folder: of the cache, shared with other runs.
        """
        self._config = config
        self._models = tuple(endpoint_models(config))
        self._folder = RulingFolder(folder, max_mib=config.cache.max_mib)
        self._threads = DaemonThreads(NUM_THREADS, "judge-cache")
        self._num_ended = 0  # look-ups and writes
        self._hangs = False
        self._rests_until_s = 0.0  # time.monotonic()
        self._lock = threading.Lock()  # of the counts
        self._told: Counter[str] = Counter()  # when metrics were last taken
        self.counts: Counter[str] = Counter()  # "hits", "misses", "corrupt", "changed", "read_errors", "write_errors"

    async def find(self, request: JudgeRequest | AnswerRequest) -> LookedUp:
        """Look for a ruling on the same content by one of this judge's models."""
        try:
            found = await self._in_thread(lambda: self._find(request))
        except FolderHangs:
            self._count("read_errors")
            found = LookedUp()
        self._count("misses" if found.known is None else "hits")
        return found

    async def keep(
        self, request: JudgeRequest | AnswerRequest, ruling: Verdicts | bool, *, model: str, key: str
    ) -> None:
        """Remember what `model` ruled under the `key` that `find` gave, if that is still the call's."""
        try:
            await self._in_thread(lambda: self._keep(request, KnownRuling(ruling=ruling, model=model), key))
        except FolderHangs:
            self._count("write_errors")

    def take_metrics(self) -> dict[str, float]:
        """Counts since this was asked last: hits and misses always, troubles where there were any."""
        with self._lock:
            new = self.counts - self._told
            self._told = self.counts.copy()
        return {f"judge/cache_{name}": float(new[name]) for name in dict.fromkeys(("hits", "misses", *new))}

    def close(self) -> None:
        """End the threads; what is being written is finished, where that does not hang."""
        self._threads.close(CLOSE_GRACE_S)

    def _find(self, request: JudgeRequest | AnswerRequest) -> LookedUp:
        num_steps = None if isinstance(request, AnswerRequest) else len(request.steps)
        keys: dict[str, str] = {}
        for model in self._models:
            try:
                key = keys[model] = ruling_key(request, self._config, model=model)
                data = self._folder.read(key)
                if data is not None:
                    return LookedUp(known=decode(data, key, num_steps=num_steps), keys=keys)
            except CorruptRuling as error:
                self._report("corrupt", f"{self._folder.file_of(key)} is damaged, {error}: it is asked for again")
            except OSError as error:
                self._report("read_errors", f"{error}; what cannot be read is asked for again")
        return LookedUp(keys=keys)

    def _keep(self, request: JudgeRequest | AnswerRequest, known: KnownRuling, key: str) -> None:
        try:
            if ruling_key(request, self._config, model=known.model) != key:
                # Nobody knows which of the two images was sent.
                self._report("changed", f"{request.image} changed while it was ruled on; the ruling is not kept")
                return
            self._folder.write(key, encode(key, known, rubric=rubric_version(request)))
        except OSError as error:
            self._report(
                "write_errors",
                f"{error}; the run goes on without keeping rulings: free some space, or set judge.cache.folder to a "
                "folder you may write to",
            )

    def _report(self, count: str, message: str) -> None:
        """Count a trouble; the first one of its sort is told."""
        if self._count(count) == 1:
            logger.warning("judge cache: %s (said once; judge/cache_%s counts)", message, count)

    def _count(self, name: str) -> int:
        with self._lock:
            self.counts[name] += 1
            return self.counts[name]

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """What `work` returns.

        Raises:
            FolderHangs: neither it nor anything else in the folder ended for `STALL_S`, or that was so a moment ago.
        """
        if self._rests():
            raise FolderHangs
        silent_looks = 0
        job = asyncio.wrap_future(self._threads.submit(work))
        try:
            while silent_looks < STALL_LOOKS and not self._rests():
                num_ended = self._num_ended
                await asyncio.wait([job], timeout=STALL_S / STALL_LOOKS)
                if job.done():
                    self._num_ended += 1
                    self._hangs = False
                    return job.result()
                silent_looks = silent_looks + 1 if self._num_ended == num_ended else 0
        finally:
            job.cancel()  # it need not be begun any more
        if not self._rests():
            self._rest()
        raise FolderHangs

    def _rests(self) -> bool:
        return time.monotonic() < self._rests_until_s

    def _rest(self) -> None:
        """Leave the folder alone for a while; said when it begins to hang."""
        self._rests_until_s = time.monotonic() + REST_S
        if not self._hangs:
            logger.warning(
                "judge cache: nothing in %s ended for %g s, its file system hangs; rulings are asked for again and not "
                "kept, and it is tried every %g s (judge/cache_read_errors and judge/cache_write_errors count)",
                self._folder.path,
                STALL_S,
                REST_S,
            )
        self._hangs = True


def open_cache(config: JudgeConfig, cache_dir: Path, *, bypass: bool = False) -> RulingCache | None:
    """The cache of a judge; None where it is switched off or the judge needs none.

    Args:
        config: of the judge; its endpoints must be set.
        cache_dir: of the run's configuration; the rulings lie below it unless `judge.cache.folder` says where.
        bypass: ask afresh and keep nothing, as a measurement of a judge's consistency must.
    """
    if bypass or not config.cache.enabled or config.kind not in CACHED_KINDS:
        return None
    folder = config.cache.folder
    return RulingCache(config, (cache_dir / FOLDER if folder is None else Path(folder)).expanduser())
