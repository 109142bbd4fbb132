"""How long calls that move a checkpoint may take, by hand."""

from __future__ import annotations

import pytest

from learner.deadlines import load_deadline, snapshot_deadline, write_deadline
from mrpo.config.watchdog import WatchdogConfig

GIB = 1024**3
INTERNVL3_8B = 118 * GIB  # with a KL penalty


def test_a_large_checkpoint_may_take_longer_than_a_small_one() -> None:
    watchdog = WatchdogConfig(save_s=100.0, load_s=200.0, min_disk_mib_s=32.0)
    assert write_deadline(watchdog, 0).seconds == 100.0
    assert write_deadline(watchdog, GIB).seconds == 100.0 + 32.0
    assert snapshot_deadline(watchdog, GIB).seconds == 100.0 + 4.0
    assert load_deadline(watchdog, GIB, num_nodes=1).seconds == 200.0 + 32.0
    assert load_deadline(watchdog, GIB, num_nodes=3).seconds == 200.0 + 3 * 32.0


@pytest.mark.parametrize("mib_per_s", [21.0, 110.0])  # a slow disk; a network of 1 Gbit/s
def test_eight_billion_weights_reach_a_slow_disk_in_time(mib_per_s: float) -> None:
    assert write_deadline(WatchdogConfig(), INTERNVL3_8B).seconds > INTERNVL3_8B / 1024**2 / mib_per_s


def test_a_deadline_says_what_it_is_made_of() -> None:
    watchdog = WatchdogConfig()
    setting, seconds = write_deadline(watchdog, INTERNVL3_8B)
    assert f"{setting}={seconds:g} s" == "(watchdog.save_s + 120,832 MiB / watchdog.min_disk_mib_s)=6941.6 s"
    assert snapshot_deadline(watchdog, GIB).setting == "(watchdog.save_s + 1,024 MiB / 256 MiB/s)"
    assert load_deadline(watchdog, GIB, num_nodes=2).setting == (
        "(watchdog.load_s + 2,048 MiB / watchdog.min_disk_mib_s)"
    )
