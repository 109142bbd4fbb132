"""Downloads against a local server: what is fetched, what is checked, and what an offline user reads."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mrpo.data.download import Downloader, get, left_out_of
from mrpo.data.prepare import prepare
from mrpo.data.rationales import PUBLISHED
from mrpo.data.sets import SETS
from mrpo.data.settings import PrepareConfig
from mrpo.errors import DataError
from tests.unit.prepared_sets import image_bytes

CLOSED = "http://127.0.0.1:9"  # the discard port: nothing listens


@dataclass
class Host:
    """A web server with these pages."""

    url: str = ""
    pages: dict[str, bytes] = field(default_factory=dict)  # path without the query
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def host() -> Iterator[Host]:
    state = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            state.asked.append(path)
            body = state.pages.get(path)
            self.send_response(404 if body is None else 200)
            sent = {"Content-Length": str(len(body or b"")), **state.headers.get(path, {})}
            for name, value in sent.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# One file


def test_a_file_is_checked_and_not_fetched_twice(host: Host, tmp_path: Path) -> None:
    host.pages["/a"] = b"content"
    for _ in range(2):
        get(f"{host.url}/a", tmp_path / "x" / "a", size=7, sha256=sha256(b"content"))
    assert (tmp_path / "x" / "a").read_bytes() == b"content"
    assert host.asked == ["/a"]


@pytest.mark.parametrize(
    ("body", "size", "digest", "reason"),
    [
        (b"content", None, "0" * 64, f"sha256 {sha256(b'content')}, expected 000"),
        (b"version https://git-lfs.github.com/spec/v1\noid", None, None, "is a Git LFS pointer"),
        (b"<!DOCTYPE html><title>Log in", None, None, "is a web page"),
    ],
)
def test_what_is_not_the_file_leaves_nothing(
    host: Host, tmp_path: Path, body: bytes, size: int | None, digest: str | None, reason: str
) -> None:
    host.pages["/a"] = body
    with pytest.raises(DataError, match=reason):
        get(f"{host.url}/a", tmp_path / "a", size=size, sha256=digest)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing(host: Host, tmp_path: Path) -> None:
    host.pages["/a"] = b"half"
    host.headers["/a"] = {"Content-Length": "400"}
    with pytest.raises(DataError, match="4 of 400 bytes arrived"):
        get(f"{host.url}/a", tmp_path / "a", size=None, sha256=None)
    assert list(tmp_path.iterdir()) == []


def test_only_web_addresses_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no web address"):
        get("file:///etc/passwd", tmp_path / "a", size=None, sha256=None)


# Hosts


def osf_file(host: Host, name: str, data: bytes) -> dict[str, object]:
    quoted = name.replace(" ", "%20")
    host.pages[f"/download/{quoted}"] = data
    facts = {"kind": "file", "name": name, "size": len(data), "extra": {"hashes": {"sha256": sha256(data)}}}
    return {"attributes": facts, "links": {"download": f"{host.url}/download/{quoted}"}}


def serve_osf(host: Host) -> None:
    """VQA-RAD with one image, its listing on two pages."""
    rows = [
        {"qid": qid, "image_name": "a.png", "question": "Which?", "answer": "lung", "phrase_type": phrase}
        for qid, phrase in ((1, "freeform"), (2, "test_freeform"))
    ]
    folder = {
        "attributes": {"kind": "folder", "name": "VQA_RAD Image Folder"},
        "relationships": {"files": {"links": {"related": {"href": f"{host.url}/images/"}}}},
    }
    listing = "/nodes/89kps/files/osfstorage/"
    first = {"data": [folder], "links": {"next": f"{host.url}/page2"}}
    second = {"data": [osf_file(host, "VQA_RAD Dataset Public.json", json.dumps(rows).encode())]}
    host.pages[listing] = json.dumps(first).encode()
    host.pages["/page2"] = json.dumps({**second, "links": {"next": None}}).encode()
    images = {"data": [osf_file(host, "a.png", image_bytes(1))], "links": {"next": None}}
    host.pages["/images/"] = json.dumps(images).encode()


def test_vqa_rad_comes_from_osf_and_is_prepared(host: Host, tmp_path: Path) -> None:
    serve_osf(host)
    downloads = Downloader(cache=tmp_path / "cache", osf=host.url)
    config = PrepareConfig(set="vqa_rad", out=str(tmp_path / "out"))
    prepared = prepare(config, downloads=downloads)
    assert {split: counts.kept for split, counts in prepared.funnel.splits.items()} == {"train": 1, "test": 1}
    asked = len(host.asked)
    assert downloads.fetch_set(SETS["vqa_rad"]) == tmp_path / "cache" / "vqa_rad"
    assert len(host.asked) == asked  # whole: never fetched again


def test_an_osf_file_with_another_digest_is_refused(host: Host, tmp_path: Path) -> None:
    serve_osf(host)
    host.pages["/download/a.png"] = image_bytes(2)
    with pytest.raises(DataError, match=r"download/a\.png: .*(bytes arrived|expected)"):
        Downloader(cache=tmp_path, osf=host.url).fetch_set(SETS["vqa_rad"])
    assert not (tmp_path / "vqa_rad" / ".complete").exists()


@pytest.mark.parametrize("name", ["../evil", "", ".."])
def test_an_osf_name_that_leaves_the_folder_is_refused(host: Host, tmp_path: Path, name: str) -> None:
    listing = {"data": [{"attributes": {"kind": "file", "name": name}}], "links": {"next": None}}
    host.pages["/nodes/89kps/files/osfstorage/"] = json.dumps(listing).encode()
    with pytest.raises(DataError, match="leaves the folder"):
        Downloader(cache=tmp_path, osf=host.url).fetch_set(SETS["vqa_rad"])


def serve_hub(host: Host, files: dict[str, bytes], *, digests: dict[str, str]) -> None:
    """A data set repository of the hub, as its API and its file addresses answer."""
    commit = "a" * 40
    repo = SETS["slake"].download.repo  # type: ignore[union-attr]
    siblings = [
        {"rfilename": name, "size": len(data), "lfs": {"sha256": digests[name], "size": len(data), "pointerSize": 1}}
        for name, data in files.items()
    ]
    facts = {"id": repo, "sha": commit, "siblings": siblings, "private": False, "downloads": 0, "tags": []}
    body = json.dumps(facts).encode()
    for revision in ("", "/revision/main", f"/revision/{commit}"):
        host.pages[f"/api/datasets/{repo}{revision}"] = body
    tree = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in files.items()]
    host.pages[f"/api/datasets/{repo}/tree/{commit}"] = json.dumps(tree).encode()
    for name, data in files.items():
        path = f"/datasets/{repo}/resolve/{commit}/{name}"
        host.pages[path] = data
        host.headers[path] = {"ETag": f'"{sha256(data)}"', "X-Repo-Commit": commit}


def test_slake_comes_from_the_hub(host: Host, tmp_path: Path) -> None:
    files = {"test.json": b"[]", "imgs.zip": b"PK", "KG.zip": b"not needed"}
    serve_hub(host, files, digests={name: sha256(data) for name, data in files.items()})
    folder = Downloader(cache=tmp_path, hub=host.url).fetch_set(SETS["slake"])
    assert {file.name: file.read_bytes() for file in folder.glob("*.*") if not file.name.startswith(".")} == {
        "test.json": b"[]",
        "imgs.zip": b"PK",
    }


def test_a_hub_file_with_another_digest_is_refused(host: Host, tmp_path: Path) -> None:
    serve_hub(host, {"test.json": b"[]"}, digests={"test.json": "0" * 64})
    with pytest.raises(DataError, match=r"test\.json arrived damaged"):
        Downloader(cache=tmp_path, hub=host.url).fetch_set(SETS["slake"])
    assert not (tmp_path / "slake" / "test.json").exists()


def test_rationales_are_checked_against_the_published_digests(host: Host, tmp_path: Path) -> None:
    host.pages["/Tang-xiaoxiao/Medthink/raw/HEAD/R-RAD/open-end/trainset.json"] = b"{}"
    with pytest.raises(DataError, match=r"trainset\.json: sha256 44136fa3.*, expected 33b9f26e"):
        Downloader(cache=tmp_path, github=host.url).fetch_rationales(SETS["vqa_rad"])


def test_what_a_download_of_rationales_leaves_out_is_said(
    host: Host, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "R-PathVQA/open-end/trainset.json"
    host.pages[f"/Tang-xiaoxiao/Medthink/raw/HEAD/{path}"] = b"{}"
    monkeypatch.setitem(PUBLISHED, path, (2, sha256(b"{}")))
    folder = Downloader(cache=tmp_path, github=host.url).fetch_rationales(SETS["pathvqa"])
    assert (folder / path).read_bytes() == b"{}"
    said = caplog.messages
    assert "R-PathVQA/open-end/valset.json, R-PathVQA/open-end/testset.json" in said[0]
    assert "the images that R-PathVQA names" in said[1]
    assert left_out_of(SETS["vqa_rad"]) == left_out_of(SETS["slake"]) == []


# Offline


@pytest.mark.parametrize("name", [name for name, spec in SETS.items() if spec.download is not None])
def test_offline_the_error_says_what_to_get_and_from_where(tmp_path: Path, name: str) -> None:
    downloads = Downloader(cache=tmp_path, hub=CLOSED, osf=CLOSED, github=CLOSED)
    with pytest.raises(DataError) as caught:
        downloads.fetch_set(SETS[name])
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"cannot download {SETS[name].title} (")
    assert f"get it from {SETS[name].source} and set data.source=<the folder>" in message


@pytest.mark.parametrize("name", ["mimic_cxr_vqa", "published"])
def test_what_is_never_downloaded_says_where_it_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"data\.source is missing: .* is not downloaded by itself; get it from "):
        Downloader(cache=tmp_path).fetch_set(SETS[name])


def test_offline_rationales(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"R-SLAKE/open-end/train\.json of .* set data\.rationales=<the clone"):
        Downloader(cache=tmp_path, github=CLOSED).fetch_rationales(SETS["slake"])
