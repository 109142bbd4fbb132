"""Rulings on disk: what finds them again, what does not, many writers, killed writers, damage, and the size."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from judge.accounting import KnownRuling
from judge.cache import RulingCache, open_cache
from judge.ruling_file import CorruptRuling, decode, encode
from judge.ruling_folder import RulingFolder
from judge.ruling_key import image_digest, ruling_key
from mrpo.choices import JudgeKind, StructuredReply
from mrpo.config import EndpointConfig, JudgeCacheConfig, JudgeConfig, ProviderConfig
from mrpo.types import AnswerRequest, JudgeRequest, Verdicts

RULING = Verdicts(alignment=[True, False], contribution=[False, False])


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "scan.png"
    Image.new("L", (8, 8), 90).save(path)
    return str(path)


def config_of(**changes: Any) -> JudgeConfig:
    return JudgeConfig(kind=JudgeKind.OPENAI_COMPATIBLE, **{"url": "http://here/v1", "model": "m", **changes})


def steps_request(image: str, **changes: Any) -> JudgeRequest:
    request = JudgeRequest(
        key="p#0", image=image, question="Which side?", answer="left", rationale="On the left.", steps=["A.", "B."]
    )
    return replace(request, **changes)


def answer_request(image: str) -> AnswerRequest:
    return AnswerRequest(key="p#0", image=image, question="Which side?", answer="left", generated="left")


def find(cache: RulingCache, request: JudgeRequest | AnswerRequest) -> KnownRuling | None:
    return asyncio.run(cache.find(request))


def keep(cache: RulingCache, request: JudgeRequest | AnswerRequest, ruling: Verdicts | bool, model: str = "m") -> None:
    asyncio.run(cache.keep(request, ruling, model=model))


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


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


@pytest.mark.parametrize(
    "change",
    [
        {"question": "Which side"},
        {"answer": "Left"},
        {"rationale": "On the  left."},
        {"steps": ["A.", "C."]},
        {"steps": ["B.", "A."]},
        {"steps": ["A.", "B.", "B."]},
        {"steps": ["A.B."]},
    ],
    ids=str,
)
def test_another_word_is_another_call(image: str, change: dict[str, Any]) -> None:
    request = steps_request(image)
    assert ruling_key(request, config_of(), model="m") != ruling_key(replace(request, **change), config_of(), model="m")


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.7},
        {"temperature": None},
        {"send_image": False},
        {"provider": ProviderConfig(structured=StructuredReply.JSON_OBJECT)},
        {"provider": ProviderConfig(reasoning_effort="low")},
        {"provider": ProviderConfig(system_role=False)},
    ],
    ids=str,
)
def test_another_way_of_asking_is_another_call(image: str, change: dict[str, Any]) -> None:
    request = steps_request(image)
    assert ruling_key(request, config_of(), model="m") != ruling_key(request, config_of(**change), model="m")


def test_model_rubric_and_kind_of_call_are_told_apart(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    request, answer = steps_request(image), answer_request(image)
    keys = {ruling_key(request, config_of(), model="m"), ruling_key(request, config_of(), model="n")}
    keys.add(ruling_key(answer, config_of(), model="m"))
    monkeypatch.setattr("judge.ruling_key.RUBRIC_VERSION", "2")
    keys.add(ruling_key(request, config_of(), model="m"))
    monkeypatch.undo()
    monkeypatch.setattr("judge.prompts.RUBRIC", "a word was changed, and the version forgotten")
    keys.add(ruling_key(request, config_of(), model="m"))
    assert len(keys) == 5


def test_what_decides_about_no_ruling_is_not_in_the_key(image: str) -> None:
    changes: dict[str, Any] = {"max_completion_tokens": 9, "concurrency": 1, "deadline_s": 1.0, "api_key_env": "OTHER"}
    changes["noise"] = 0.5
    request = steps_request(image)
    other = ruling_key(replace(request, key="q#7"), config_of(url="http://x/v1", **changes), model="m")
    assert other == ruling_key(request, config_of(), model="m")


def test_an_image_counts_by_its_content(tmp_path: Path, image: str) -> None:
    copy, other = tmp_path / "copy.png", tmp_path / "other.png"
    copy.write_bytes(Path(image).read_bytes())
    Image.new("L", (8, 8), 91).save(other)
    key = ruling_key(steps_request(image), config_of(), model="m")
    assert ruling_key(steps_request(str(copy)), config_of(), model="m") == key
    assert ruling_key(steps_request(str(other)), config_of(), model="m") != key
    unseen = config_of(send_image=False)
    assert ruling_key(steps_request(image), unseen, model="m") == ruling_key(
        steps_request(str(other)), unseen, model="m"
    )
    before = image_digest(image)
    Image.new("L", (8, 8), 17).save(image)
    os.utime(image, ns=(1, 1))  # as a rewritten file, it has another time
    assert image_digest(image) != before


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


# Damage


def _resigned(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """A file whose checksum is right and whose content is not."""

    def damage(data: bytes) -> bytes:
        payload = json.dumps(change(json.loads(data.split(b"\n")[1]))).encode()
        return hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload + b"\n"

    return damage


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-5],
    "cut in the checksum": lambda data: data[:30],
    "last byte lost": lambda data: data[:-1],
    "a bit flipped": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "zeros": lambda data: bytes(len(data)),
    "not JSON": lambda data: b"rubbish\nrubbish\n",
    "appended": lambda data: data + data,
    "another call's": _resigned(lambda entry: entry | {"key": "0" * 64}),
    "no object": _resigned(lambda entry: [entry]),
    "deep": lambda data: _resigned(lambda entry: entry)(b"\n" + json.dumps("[" * 100).encode() + b"\n"),
    "one mark short": _resigned(lambda entry: entry | {"alignment": "1"}),
    "one mark more": _resigned(lambda entry: entry | {"contribution": "000"}),
    "marks of another kind": _resigned(lambda entry: entry | {"alignment": [True, False]}),
    "a mark of 2": _resigned(lambda entry: entry | {"alignment": "12"}),
    "no marks": _resigned(lambda entry: {key: entry[key] for key in ("key", "model", "rubric")}),
    "an answer's": _resigned(lambda entry: {key: entry[key] for key in ("key", "model")} | {"correct": "1"}),
    "no model": _resigned(lambda entry: entry | {"model": None}),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=str)
def test_a_damaged_file_is_a_miss_that_is_reported_and_replaced(
    tmp_path: Path, image: str, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache = RulingCache(config_of(), tmp_path / "c")
    keep(cache, steps_request(image), RULING)
    (file,) = files_of(tmp_path / "c")
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    with caplog.at_level(logging.WARNING):
        assert find(cache, steps_request(image)) is None
        assert find(cache, steps_request(image)) is None
    assert cache.counts == {"corrupt": 2, "misses": 2}
    assert len(caplog.records) == 1, "said once"
    assert str(file) in caplog.text
    keep(cache, steps_request(image), RULING)
    assert file.read_bytes() == whole
    assert find(cache, steps_request(image)) is not None


def test_an_answers_file_is_held_to_its_form_too() -> None:
    whole = encode("k", KnownRuling(ruling=True, model="m"), rubric="1")
    assert decode(whole, "k", num_steps=None) == KnownRuling(ruling=True, model="m")
    with pytest.raises(CorruptRuling, match="another call"):
        decode(whole, "l", num_steps=None)
    with pytest.raises(CorruptRuling, match="alignment"):
        decode(whole, "k", num_steps=1)


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


def test_a_full_disk_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RulingFolder(tmp_path / "c", max_mib=1)
    folder.write("a" * 64, b"x")
    monkeypatch.setattr("judge.ruling_folder.os.replace", _no_space)
    with pytest.raises(OSError, match="No space left"):
        folder.write("a" * 63 + "b", b"y")
    assert [file.name for file in files_of(tmp_path / "c")] == ["a" * 64]


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


# Many writers


def _write_many(folder: str, number: int) -> None:
    """Half of the keys are every process's, half its own; all are read back, and read while others write them."""
    store = RulingFolder(Path(folder), max_mib=1024)
    for index in range(200):
        owner = "all" if index % 2 else str(number)
        key, entry = _entry(owner, index)
        store.write(key, entry)
        shared, _ = _entry("all", (index * 7) % 200 | 1)
        data = store.read(shared)
        if data is not None:
            decode(data, shared, num_steps=None)
        read = store.read(key)
        assert read is not None
        decode(read, key, num_steps=None)


def _entry(owner: str, index: int) -> tuple[str, bytes]:
    key = hashlib.sha256(f"{owner} {index}".encode()).hexdigest()
    return key, encode(key, KnownRuling(ruling=index % 3 == 0, model="m" * 2000), rubric="1")


@pytest.mark.timeout(180)
def test_eight_processes_write_the_same_and_other_rulings_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(str(tmp_path / "c"), number)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 8
    files = files_of(tmp_path / "c")
    assert len(files) == 8 * 100 + 100
    for file in files:
        decode(file.read_bytes(), file.name, num_steps=None)


def _write_for_ever(folder: str, started: Any) -> None:
    store = RulingFolder(Path(folder), max_mib=1024)
    index = 0
    while True:
        store.write(*_entry("all", index % 50))
        index += 1
        if index == 20:
            started.set()


@pytest.mark.timeout(180)
def test_a_killed_writer_leaves_no_half_file_in_sight(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for round_number in range(3):
        started = context.Event()
        writer = context.Process(target=_write_for_ever, args=(str(tmp_path / "c"), started))
        writer.start()
        started.wait()
        time.sleep(0.01 * round_number)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    visible = [file for file in files_of(tmp_path / "c") if not file.name.startswith(".")]
    assert len(visible) >= 20
    for file in visible:
        decode(file.read_bytes(), file.name, num_steps=None)


def test_what_killed_writers_left_goes_after_an_hour(tmp_path: Path) -> None:
    folder = RulingFolder(tmp_path / "c", max_mib=1)
    folder.write("a" * 64, b"x")
    part = tmp_path / "c" / "aa"
    old, young = part / ".aaaaaaaa.1.dead.tmp", part / ".aaaaaaaa.2.beef.tmp"
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 3601, time.time() - 3601))
    folder.trim(part)
    assert (old.exists(), young.exists(), (part / ("a" * 64)).exists()) == (False, True, True)


# Size


def disk_bytes(folder: Path) -> int:
    return sum(max(file.stat().st_size, file.stat().st_blocks * 512) for file in files_of(folder))


@pytest.mark.parametrize(("max_mib", "num_files"), [(1, 1000), (2, 1500)])
def test_the_folder_keeps_to_its_size(tmp_path: Path, max_mib: int, num_files: int) -> None:
    folder = RulingFolder(tmp_path / "c", max_mib=max_mib)
    for index in range(num_files):
        folder.write(*_entry("all", index))
    assert 0.4 * max_mib * 2**20 < disk_bytes(tmp_path / "c") <= max_mib * 2**20


def test_the_work_of_trimming_does_not_grow_with_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files listed per write, on average over the writes into one part that is full at 64 files (64 MiB) or 8."""
    listed: dict[int, float] = {}
    real = os.scandir
    for max_mib in (8, 64):
        count = 0

        def scandir(path: Any) -> Any:
            nonlocal count
            count += len(os.listdir(path))
            return real(path)

        folder = RulingFolder(tmp_path / str(max_mib), max_mib=max_mib)
        with monkeypatch.context() as patch:
            patch.setattr("judge.ruling_folder.os.scandir", scandir)
            for index in range(600):
                folder.write(f"{index:064x}", b"x")
        listed[max_mib] = count / 600
        assert len(files_of(tmp_path / str(max_mib))) <= max_mib * 1.5
    assert max(listed.values()) < 25


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    folder = RulingFolder(tmp_path / "c", max_mib=4)  # 4 blocks a part; 90 % of it is 3 files
    keys = [f"aa{index:062x}" for index in range(4)]
    now = time.time()
    for age, key in enumerate(keys):
        folder.write(key, b"x")
        os.utime(folder.file_of(key), (now - 9000 + age, now - 9000 + age))
    assert folder.read(keys[0]) == b"x"  # the oldest is used
    folder.write("aa" + "f" * 62, b"x")
    kept = [key for key in keys if folder.file_of(key).exists()]
    assert kept[0] == keys[0]
    assert keys[1] not in kept
    assert folder.file_of("aa" + "f" * 62).exists()


# Time


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
            assert await cache.find(request) is not None
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
