"""Archive store: a folder, or a bucket of an S3-compatible store. Objects are written once and never changed."""

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
"""A segment of 16 MiB in this time needs 270 KiB/s."""
RETRIES_MAX = 4
"""Retries of a request without an answer, with a backoff from 0.1 s; then cron or the operator tries again."""


class Stored(NamedTuple):
    """An object's name within its folder, and its size in bytes."""

    name: str
    bytes: int


class ArchiveStore:
    """Objects by path. Errors of the store raise Retry, without credentials."""

    def __init__(self, store: ObjectStore, address: str, local: Path | None) -> None:
        self.address = address
        self._store = store
        self._local = local

    async def get(self, path: str) -> bytes | None:
        """Return an object's bytes; None where there is none."""
        with self._errors(f"cannot read {path}"):
            try:
                answer = await obstore.get_async(self._store, path)
                return bytes(await answer.bytes_async())
            except (FileNotFoundError, NotFoundError):
                return None

    async def create(self, path: str, content: bytes) -> bool:
        """Write a new object; False where one exists, which stays unchanged."""
        with self._errors(f"cannot write {path}"):
            try:
                await obstore.put_async(self._store, path, content, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            await self._durable(path)
            return True

    async def replace(self, path: str, content: bytes) -> None:
        """Write an object, also in place of an existing one."""
        with self._errors(f"cannot write {path}"):
            await obstore.put_async(self._store, path, content, use_multipart=False)
            await self._durable(path)

    async def listed(self, folder: str, *, after: str = "") -> list[Stored]:
        """Return the objects of a folder with names behind `after`, sorted by name."""
        offset = f"{folder}/{after}" if after else None
        objects = []
        with self._errors(f"cannot list {folder}"):
            async for chunk in obstore.list(self._store, folder, offset=offset):
                objects += [Stored(entry["path"].rpartition("/")[2], entry["size"]) for entry in chunk]
        return sorted(objects)

    async def folders(self, folder: str) -> list[str]:
        """Return the names of the folders within a folder, sorted."""
        with self._errors(f"cannot list {folder}"):
            listing = await obstore.list_with_delimiter_async(self._store, folder)
        return sorted(prefix.rpartition("/")[2] for prefix in listing["common_prefixes"])

    async def _durable(self, path: str) -> None:
        """Flush a file and its folders, so that no power cut leaves a manifest without its segment."""
        if self._local is not None:
            await asyncio.to_thread(_flush, self._local / path)

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise Retry(f"archive {self.address} {action}: {_first_line(error)}") from error


def configured(settings: Settings) -> bool:
    """Return whether this installation has an archive."""
    return bool(settings.archive_url)


def connect(settings: Settings) -> ArchiveStore:
    """Connect to the archive of TARTAN_ARCHIVE_URL; S3's endpoint and credentials are in the usual AWS_* variables.

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
    """Return an error's first line; below it obstore dumps its internals."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _flush(path: Path) -> None:
    for file in (path, path.parent, path.parent.parent):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
