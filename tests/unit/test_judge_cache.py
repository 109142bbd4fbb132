"""Rulings on disk: what finds them again, what does not, troubles that are lived with, and the time they take."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from judge.accounting import KnownRuling, LookedUp
from judge.cache import RulingCache, open_cache
from judge.ruling_file import encode
from judge.ruling_folder import RulingFolder
from judge.ruling_key import ruling_key
from mrpo.choices import JudgeKind
from mrpo.config import EndpointConfig, JudgeCacheConfig, JudgeConfig
from mrpo.types import Verdicts
from tests.unit.kept_rulings import RULING, answer_request, config_of, files_of, find, image_file, keep, steps_request


@pytest.fixture
def image(tmp_path: Path) -> str:
    return image_file(tmp_path)


def test_a_ruling_is_found_again_by_another_run(tmp_path: Path, image: str) -> None:
    first = RulingCache(config_of(), tmp_path / "c")
    assert find(first, steps_request(image)) is None
    keep(first, steps_request(image), RULING)
    keep(first, answer_request(image), False)
    second = RulingCache(config_of(url="http://there/v1", deadline_s=1.0), tmp_path / "c")
    found = find(second, steps_request(image, key="other#3"))
    assert found == KnownRuling(ruling=RULING, model="m")
    assert find(second, answer_request(image)) == KnownRuling(ruling=False, model="m")
    assert second.counts == {"hits": 2}


def test_a_hit_does_not_read_the_image(tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RulingCache(config_of(), tmp_path / "c")
    keep(cache, steps_request(image), RULING)
    opened: list[str] = []

    def spy(path: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(str(path))
        return open(path, *arguments, **options)

    monkeypatch.setattr("judge.ruling_key.open", spy, raising=False)
    assert find(cache, steps_request(image)) is not None
    assert opened == []


def test_of_several_models_any_may_have_ruled(tmp_path: Path, image: str) -> None:
    several = config_of(
        url=None, model=None, endpoints=tuple(EndpointConfig(url=f"http://{name}/v1", model=name) for name in "ab")
    )
    cache = RulingCache(several, tmp_path / "c")
    keep(cache, steps_request(image), RULING, model="b")
    assert find(cache, steps_request(image)) == KnownRuling(ruling=RULING, model="b")
    assert find(RulingCache(config_of(model="a"), tmp_path / "c"), steps_request(image)) is None


def test_a_ruling_on_an_image_that_changed_meanwhile_is_not_kept(
    tmp_path: Path, image: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Under neither name: nobody knows which image was sent."""
    cache = RulingCache(config_of(), tmp_path / "c")
    looked_up = asyncio.run(cache.find(steps_request(image)))
    assert looked_up.known is None
    Image.new("L", (8, 8), 17).save(image)
    with caplog.at_level(logging.WARNING):
        asyncio.run(cache.keep(steps_request(image), RULING, model="m", key=looked_up.keys["m"]))
    assert files_of(tmp_path / "c") == []
    assert cache.counts == {"misses": 1, "changed": 1}
    assert f"{image} changed while it was ruled on" in caplog.text
    looked_up = asyncio.run(cache.find(steps_request(image)))
    asyncio.run(cache.keep(steps_request(image), RULING, model="m", key=looked_up.keys["m"]))
    assert find(cache, steps_request(image)) == KnownRuling(ruling=RULING, model="m")


def test_only_judges_that_cost_something_are_cached(tmp_path: Path) -> None:
    kinds = {
        kind: open_cache(JudgeConfig(kind=kind, url="http://here/v1", model="m"), tmp_path) is not None
        for kind in JudgeKind
    }
    assert {kind for kind, cached in kinds.items() if cached} == {JudgeKind.OPENAI_COMPATIBLE, JudgeKind.VLLM}
    assert open_cache(config_of(), tmp_path, bypass=True) is None
    assert open_cache(config_of(cache=JudgeCacheConfig(enabled=False)), tmp_path) is None


def test_the_folder_is_under_cache_dir_or_where_it_is_set(tmp_path: Path, image: str) -> None:
    for config, place in (
        (config_of(), tmp_path / "judge"),
        (config_of(cache=JudgeCacheConfig(folder=str(tmp_path / "shared"))), tmp_path / "shared"),
    ):
        cache = open_cache(config, tmp_path)
        assert cache is not None
        keep(cache, steps_request(image), RULING)
        assert len(files_of(place)) == 1


def test_a_file_holds_marks_and_hashes_alone(tmp_path: Path, image: str) -> None:
    cache = RulingCache(config_of(), tmp_path / "c")
    keep(cache, steps_request(image, question="PATIENT-1234", steps=["SECRET-1.", "SECRET-2."]), RULING)
    (file,) = files_of(tmp_path / "c")
    entry = json.loads(file.read_bytes().split(b"\n")[1])
    assert entry == {"key": file.name, "model": "m", "rubric": "1", "alignment": "10", "contribution": "00"}
    assert file.parent.name == file.name[:2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_said_once(tmp_path: Path, image: str, caplog: Any) -> None:
    folder = tmp_path / "c"
    folder.mkdir(mode=0o500)
    cache = RulingCache(config_of(), folder)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            keep(cache, steps_request(image), RULING)
    assert cache.counts["write_errors"] == 3
    assert len(caplog.records) == 1


def test_a_path_that_cannot_be_a_folder_is_lived_with(
    tmp_path: Path, image: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "c").write_text("a file")
    cache = RulingCache(config_of(), tmp_path / "c")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert find(cache, steps_request(image)) is None
            keep(cache, steps_request(image), RULING)
    assert (cache.counts["read_errors"], cache.counts["write_errors"], cache.counts["misses"]) == (3, 3, 3)
    assert ["judge.cache.folder" in record.message for record in caplog.records] == [False, True]


def test_a_hit_takes_less_than_a_millisecond_of_work(tmp_path: Path, image: str) -> None:
    """Processor time, which a busy machine does not lengthen; among 3,000 others, in a folder that was just opened."""
    config = config_of()
    requests = [steps_request(image, key=str(n), steps=[f"Step {n}.", "B."] * 4) for n in range(3000)]
    ruling = Verdicts(alignment=[True] * 8, contribution=[False] * 8)
    writer = RulingFolder(tmp_path / "c", max_mib=1024)
    for request in requests:
        key = ruling_key(request, config, model="m")
        writer.write(key, encode(key, KnownRuling(ruling=ruling, model="m"), rubric="1"))
    cache = RulingCache(config, tmp_path / "c")

    async def find_all() -> float:
        await cache.find(requests[0])  # threads start
        began = time.process_time()
        for request in requests[1:]:
            assert (await cache.find(request)).known is not None
        return (time.process_time() - began) / (len(requests) - 1)

    assert asyncio.run(find_all()) < 0.001
    assert cache.counts["hits"] == 3000


def test_metrics_are_what_is_new(tmp_path: Path, image: str) -> None:
    cache = RulingCache(config_of(), tmp_path / "c")
    assert find(cache, steps_request(image)) is None
    keep(cache, steps_request(image), RULING)
    assert find(cache, steps_request(image)) is not None
    assert cache.take_metrics() == {"judge/cache_hits": 1.0, "judge/cache_misses": 1.0}
    (file,) = files_of(tmp_path / "c")
    file.write_bytes(b"")
    assert find(cache, steps_request(image)) is None
    assert cache.take_metrics() == {"judge/cache_hits": 0.0, "judge/cache_misses": 1.0, "judge/cache_corrupt": 1.0}


def test_a_folder_that_hangs_is_left_alone_for_a_while(
    tmp_path: Path, image: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("judge.cache.STALL_S", 0.2)
    monkeypatch.setattr("judge.cache.CLOSE_GRACE_S", 0.1)
    request, other = steps_request(image), steps_request(image, question="Which lobe?")
    cache = RulingCache(config_of(), tmp_path / "c")
    hanging = cache._folder.file_of(ruling_key(request, config_of(), model="m"))
    hanging.parent.mkdir(parents=True)
    os.mkfifo(hanging)  # opening it waits for a writer that never comes
    with caplog.at_level(logging.WARNING):
        looked_up = asyncio.run(cache.find(request))
    assert looked_up == LookedUp()  # without a key nothing will be kept
    assert find(cache, other) is None  # it is not even looked for
    keep(cache, other, RULING)
    assert files_of(tmp_path / "c") == []
    assert cache.counts == {"misses": 2, "read_errors": 2, "write_errors": 1}
    (told,) = caplog.messages
    assert str(tmp_path / "c") in told
    assert "its file system hangs" in told

    monkeypatch.setattr("judge.cache.STALL_S", 60.0)
    cache._rests_until_s = 0.0  # the while is over; one thread of eight is still stuck
    keep(cache, other, RULING)
    assert find(cache, other) == KnownRuling(ruling=RULING, model="m")
    cache.close()


def test_many_look_ups_that_wait_for_a_thread_are_no_hang(
    tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they take longer than a hang does; each is there a moment after another."""
    monkeypatch.setattr("judge.cache.STALL_S", 2.0)
    cache = RulingCache(config_of(), tmp_path / "c")

    def slow(_: str) -> None:
        time.sleep(0.2)

    monkeypatch.setattr(cache._folder, "read", slow)

    async def find_all() -> None:
        await asyncio.gather(*(cache.find(steps_request(image, key=str(n))) for n in range(100)))

    asyncio.run(find_all())
    assert cache.counts == {"misses": 100}
    cache.close()


def test_a_process_ends_though_a_thread_does_not() -> None:
    script = (
        "import threading\n"
        "from judge.daemon_threads import DaemonThreads\n"
        "threads = DaemonThreads(2, 'stuck')\n"
        "stuck, done = threads.submit(threading.Event().wait), threads.submit(lambda: 'done')\n"
        "print(done.result())\n"
        "threads.close(0.1)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout == "done\n"
