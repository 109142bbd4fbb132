"""Sets and rationales from where they are published, each file checked against the digest that its host states.

What came whole is kept and never fetched again. Where there is no network, the error says what to get and where from.
"""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import json
import logging
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrpo.data.rationales import FOLDER, PUBLISHED, WITHOUT_DIGEST
from mrpo.data.sets import HubSource, Layout, OsfSource, SetSpec, UrlSource
from mrpo.data.source import HEAD_BYTES, refuse_stand_ins, sha256_of
from mrpo.errors import DataError

logger = logging.getLogger(__name__)

MEDTHINK = "Tang-xiaoxiao/Medthink"
COMPLETE = ".complete"  # an empty file in a folder that holds everything
CHUNK = 2**20
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloader:
    """Fetches into a folder of its own; the hosts are fields so that tests can bring their own."""

    cache: Path
    hub: str | None = None  # null: huggingface_hub's own
    osf: str = "https://api.osf.io/v2"
    github: str = "https://github.com"

    def fetch_set(self, spec: SetSpec) -> Path:
        """The folder with a set as distributed.

        Raises:
            DataError: it may not be fetched unasked, cannot be reached, or arrived damaged.
        """
        remedy = f"get it from {spec.source} and set data.source=<the folder>"
        if spec.download is None:
            raise DataError(f"data.source is missing: {spec.title} is not downloaded by itself; {remedy}")
        folder = self.cache / spec.name
        if not (folder / COMPLETE).exists():
            logger.warning("downloading %s (%s) to %s", spec.title, spec.license, folder)
            self._fetch(spec, folder, remedy)
            (folder / COMPLETE).touch()
        return folder

    def fetch_rationales(self, spec: SetSpec) -> Path:
        """The folder with MedThink's rationales of a set, as in its repository.

        Raises:
            DataError: they cannot be reached, or arrived damaged.
        """
        folder = self.cache / "medthink"
        for path, (size, digest) in PUBLISHED.items():
            if path.startswith(f"{spec.rationales}/"):
                try:
                    get(f"{self.github}/{MEDTHINK}/raw/HEAD/{path}", folder / path, size=size, sha256=digest)
                except (OSError, http.client.HTTPException) as error:
                    raise DataError(
                        f"cannot download {path} of {MEDTHINK} ({error}); clone it with Git LFS where there is "
                        f"network, and set data.rationales=<the clone, with {spec.rationales}/{FOLDER}/>"
                    ) from None
        for missing in left_out_of(spec):
            logger.warning("data.rationales=download leaves out %s", missing)
        return folder

    def _fetch(self, spec: SetSpec, folder: Path, remedy: str) -> None:
        import httpx  # here, because most runs download nothing
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            match spec.download:
                case HubSource():
                    fetch_from_hub(spec.download, folder, endpoint=self.hub)
                case OsfSource():
                    fetch_from_osf(f"{self.osf}/nodes/{spec.download.node}/files/osfstorage/", folder)
                case UrlSource():
                    for path in spec.download.paths:
                        get(f"{self.github}/{path}", folder / path.rsplit("/", 1)[-1], size=None, sha256=None)
        except (
            OSError,
            http.client.HTTPException,
            httpx.HTTPError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        ) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(f"cannot download {spec.title} ({reason}); where there is network, {remedy}") from None


def left_out_of(spec: SetSpec) -> list[str]:
    """What of MedThink's rationales of a set is not downloaded, each with what to do about it."""
    missing = []
    if names := WITHOUT_DIGEST.get(spec.rationales or ""):
        files = ", ".join(f"{spec.rationales}/{FOLDER}/{name}" for name in names)
        missing.append(f"{files} (no digest to check them by is known; take them from a clone of {MEDTHINK})")
    if spec.loader == Layout.PARQUET:
        missing.append(
            f"the images that {spec.rationales} names; without them no question of {spec.title} finds its rationale: "
            "put the files of those names below data.source"
        )
    return missing


def get(url: str, target: Path, *, size: int | None, sha256: str | None) -> None:
    """Fetch one file, unless it is there whole.

    Raises:
        OSError: the host cannot be reached or refuses.
        DataError: what arrived is not what was promised; nothing is left behind.
    """
    if target.exists() and (sha256 is None or sha256_of(target) == sha256):
        return
    if not url.startswith(("https://", "http://")):
        raise DataError(f"{url} is no web address; get {target.name} by hand")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    digest = hashlib.sha256()
    received = 0
    head = b""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, partial.open("wb") as out:
            size = int(response.headers.get("Content-Length") or 0) or size
            while chunk := response.read(CHUNK):
                head = head or chunk[:HEAD_BYTES]
                digest.update(chunk)
                received += len(chunk)
                out.write(chunk)
        refuse_stand_ins(head, target)
        if size is not None and received != size:
            raise DataError(f"{url}: {received} of {size} bytes arrived; run the command again")
        if sha256 is not None and digest.hexdigest() != sha256:
            raise DataError(f"{url}: sha256 {digest.hexdigest()}, expected {sha256}; it changed or was damaged")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def fetch_from_hub(source: HubSource, folder: Path, *, endpoint: str | None) -> None:
    """The needed files of a data set repository of the Hugging Face hub, at its newest commit.

    Raises:
        OSError, httpx.HTTPError, HfHubHTTPError: the hub cannot be reached, or wants an accepted license.
        DataError: a file arrived damaged.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    info = api.dataset_info(source.repo, files_metadata=True)
    api.snapshot_download(
        source.repo, repo_type="dataset", revision=info.sha, local_dir=folder, allow_patterns=list(source.patterns)
    )
    for item in info.siblings or ():
        if not any(fnmatch.fnmatch(item.rfilename, pattern) for pattern in source.patterns):
            continue
        file = folder / item.rfilename
        damaged = item.size is not None and file.stat().st_size != item.size
        if damaged or (item.lfs is not None and sha256_of(file) != item.lfs.sha256):
            file.unlink()
            raise DataError(f"{file} arrived damaged (size or sha256 differs from the hub's); run the command again")


def fetch_from_osf(listing: str, folder: Path) -> None:
    """All files below a folder of an OSF project, by its API's listing.

    Raises:
        OSError: OSF cannot be reached.
        DataError: a file arrived damaged, or the listing is not what the API promises.
    """
    for entry in _osf_entries(listing):
        try:
            facts = entry["attributes"]
            name = str(facts["name"])
            if "/" in name or name in ("", ".", ".."):
                raise DataError(f"{listing}: file name {name!r} leaves the folder")
            if facts["kind"] == "folder":
                fetch_from_osf(entry["relationships"]["files"]["links"]["related"]["href"], folder / name)
            else:
                digest = facts["extra"]["hashes"]["sha256"]
                get(entry["links"]["download"], folder / name, size=facts["size"], sha256=digest)
        except (KeyError, TypeError) as error:
            raise DataError(f"{listing}: the listing lacks {error}; get the files by hand") from None


def _osf_entries(listing: str) -> Iterator[Any]:
    page: str | None = listing
    while page is not None:
        if not page.startswith(("https://", "http://")):
            raise DataError(f"{page} is no web address; get the files by hand")
        with urllib.request.urlopen(page, timeout=TIMEOUT_S) as response:
            try:
                answer = json.load(response)
                yield from answer["data"]
                page = answer["links"]["next"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{page}: not a listing of the OSF API ({error}); get the files by hand") from None
