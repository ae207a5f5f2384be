"""Where the archive is: a folder, or a bucket of an S3-compatible store. Objects are put once and never changed."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import ObjectStore, from_url

from runtime.settings import Settings
from schemas.errors import Halt, Retry

CONNECT_S_MAX = 5
REQUEST_S_MAX = 60
"""A segment of 16 MiB within it needs 270 KiB/s."""
RETRIES_MAX = 4
"""Of a request that the store did not answer, with 0.1 s doubled between them; cron or the operator tries again."""


class Stored(NamedTuple):
    """An object's name within its folder, and its size in bytes."""

    name: str
    bytes: int


class ArchiveStore:
    """Objects by path. Errors of the store are Retry; none of them holds a credential."""

    def __init__(self, store: ObjectStore, address: str, local: Path | None) -> None:
        self.address = address
        self._store = store
        self._local = local

    async def get(self, path: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        with self._errors(f"cannot read {path}"):
            try:
                found = await obstore.get_async(self._store, path)
                return bytes(await found.bytes_async())
            except (FileNotFoundError, NotFoundError):
                return None

    async def create(self, path: str, content: bytes) -> bool:
        """Put an object where none is; False where one is, which stays as it is."""
        with self._errors(f"cannot write {path}"):
            try:
                await obstore.put_async(self._store, path, content, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            await self._durable(path)
            return True

    async def replace(self, path: str, content: bytes) -> None:
        """Put an object, whatever is there."""
        with self._errors(f"cannot write {path}"):
            await obstore.put_async(self._store, path, content, use_multipart=False)
            await self._durable(path)

    async def listed(self, folder: str, *, after: str = "") -> list[Stored]:
        """The objects of a folder whose names come after one, sorted by name."""
        offset = f"{folder}/{after}" if after else None
        found = []
        with self._errors(f"cannot list {folder}"):
            async for chunk in obstore.list(self._store, folder, offset=offset):
                found += [Stored(entry["path"].rpartition("/")[2], entry["size"]) for entry in chunk]
        return sorted(found)

    async def folders(self, folder: str) -> list[str]:
        """The names of the folders within a folder, sorted."""
        with self._errors(f"cannot list {folder}"):
            found = await obstore.list_with_delimiter_async(self._store, folder)
        return sorted(prefix.rpartition("/")[2] for prefix in found["common_prefixes"])

    async def _durable(self, path: str) -> None:
        """Flush a file and its folder: after a power cut a manifest must never be there without its segment."""
        if self._local is not None:
            await asyncio.to_thread(_flush, self._local / path)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise Retry(f"archive {self.address} {what}: {_first_line(error)}") from error


def configured(settings: Settings) -> bool:
    """Whether this installation has an archive."""
    return bool(settings.archive_url)


def connect(settings: Settings) -> ArchiveStore:
    """The archive that TARTAN_ARCHIVE_URL names; S3's endpoint and credentials are in AWS_* as everywhere.

    Raises: Halt, where no URL is set, or it cannot be one; Retry, where the folder cannot be made.
    """
    url = settings.archive_url
    if not url:
        raise Halt("no archive: set TARTAN_ARCHIVE_URL (file:///folder or s3://bucket/prefix)")
    try:
        if url.startswith("file:"):
            local = Path(unquote(urlsplit(url).path))
            return ArchiveStore(from_url(url, mkdir=True), url, local)
        return ArchiveStore(_s3(url), url, None)
    except OSError as error:
        raise Retry(f"archive {url}: {_first_line(error)}") from error
    except (BaseError, ValueError) as error:
        raise Halt(f"TARTAN_ARCHIVE_URL {url}: {_first_line(error)}") from error


def _s3(url: str) -> ObjectStore:
    return from_url(
        url,
        client_options={
            "connect_timeout": timedelta(seconds=CONNECT_S_MAX),
            "timeout": timedelta(seconds=REQUEST_S_MAX),
            "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true",  # not read beside client_options
        },
        retry_config={"max_retries": RETRIES_MAX, "retry_timeout": timedelta(seconds=REQUEST_S_MAX)},
    )


def _first_line(error: BaseException) -> str:
    """What an error says; obstore's has a dump of its insides below the first line."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _flush(path: Path) -> None:
    for place in (path, path.parent, path.parent.parent):
        opened = os.open(place, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
