"""What tests of real parts share: one local Ray of two CPUs for the whole session, Ctrl-C, an image."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray that every test of the session shares; it is shut down at the end of the session."""
    import ray

    ray.init(
        address="local",  # never one that another process on this machine has started
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=256 * 1024**2,  # bytes; the default is a third of the machine's memory
        namespace="mrpo-tests",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Ctrl-C reaches what tests start also where pytest runs in a shell's background, which ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def image(tmp_path: Path) -> str:
    """Path of a small grey scan, a test's own."""
    path = tmp_path / "scan.png"
    Image.new("L", (84, 84), 90).save(path)
    return str(path)
