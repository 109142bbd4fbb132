"""A recording of what a rank computes, by PyTorch's profiler."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch


class Tracing:
    """One recording at a time. Begin and end it on the thread that computes: the profiler follows that thread."""

    def __init__(self) -> None:
        self._profile: torch.profiler.profile | None = None

    def start(self, *, stacks: bool) -> None:
        """Record from now on; `stacks`: Python's frames too."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=activities, with_stack=stacks, record_shapes=False)
        self._profile.start()

    def stop(self) -> bytes:
        """End the recording: a Chrome trace, compressed by gzip."""
        assert self._profile is not None, "start() comes before stop()"
        profile, self._profile = self._profile, None
        profile.stop()
        with tempfile.TemporaryDirectory(prefix="mrpo-trace-") as folder:
            path = Path(folder) / "trace.json.gz"
            profile.export_chrome_trace(str(path))
            return path.read_bytes()
