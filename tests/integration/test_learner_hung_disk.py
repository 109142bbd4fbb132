"""A group of ranks whose disk hangs under a checkpoint that is written while training goes on."""

from __future__ import annotations

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import asyncio
from pathlib import Path

import pytest

from learner.group import DeepSpeedLearner
from mrpo.config import WatchdogConfig
from mrpo.errors import ResourceError
from mrpo.manifest import check_manifest
from tests.integration.learner_world import build_world, completions, spec

pytestmark = pytest.mark.usefixtures("ray_session")

SAVE_S = 12.0


@pytest.mark.slow
def test_the_write_is_given_up_and_until_it_has_ended_no_second_copy_is_made(tmp_path: Path) -> None:
    """The manifest is a pipe that nobody reads, as a file on a disk that does not answer."""
    build_world(tmp_path)
    samples = completions(tmp_path)

    async def body() -> None:
        learner = DeepSpeedLearner(spec(tmp_path, num_ranks=2, watchdog=WatchdogConfig(save_s=SAVE_S)))
        await learner.start()
        try:
            (_, pid), _ = await learner._ranks.call("where")
            hung, whole = tmp_path / "hung", tmp_path / "whole"
            hung.mkdir()
            whole.mkdir()
            pipe = hung / f".manifest.json.{pid}.tmp"
            os.mkfifo(pipe)
            await learner.snapshot()
            given_up = r"learner-0 did not write within \(watchdog\.save_s \+ \d+ MiB / .*\)=12\.\d* s: the disk hangs"
            with pytest.raises(ResourceError, match=given_up):
                await learner.write(str(hung))
            with pytest.raises(ResourceError, match=r"no checkpoint is taken: the one before is still being written"):
                await learner.snapshot()
            assert (await learner.step(samples, progress=0.0)).grad_norm > 0, "both ranks go on"
            answering = os.open(pipe, os.O_RDWR)
            await learner.snapshot()
            os.close(answering)
            await learner.write(str(whole))
            check_manifest(whole)
            await learner.load(str(whole))
            assert (await learner.step(samples, progress=0.1)).grad_norm > 0
        finally:
            await learner.close()

    asyncio.run(body())
