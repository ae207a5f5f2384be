"""Loader: replay changesets into the next version, from its own positions up to given ones. Shell."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple, Protocol, TypeVar

from msgspec import Struct

from projections.decode.log_record import LogRecord, decode_record
from projections.projector import EVENTS_MAX, Projector
from projections.store.connection import Session
from projections.store.tables import NEXT, SCHEMA
from projections.user_keys import OwnerCache
from runtime import logs
from runtime.archive.log_reader import LogReader
from runtime.archive.log_scan import looking
from runtime.kafka.clients import Ends
from runtime.kafka.reader import Received
from runtime.postgres.errors import LATE, reason
from runtime.retry import Backoff
from runtime.settings import Settings
from runtime.users.keys import Keyring
from runtime.users.vault import Vault
from schemas import events
from schemas.errors import Retry
from schemas.topics import CHANGESETS

RECORDS_MAX = 5_000
"""Records of one batch. Many records with few events would otherwise fill the memory with their Items."""
AT_ONCE_MAX = 1_000
"""Up to this many records all partitions are read at once, at 4 MiB each: one after the other, a swap's writers would
wait for twelve connections to Kafka."""
TRIES_MAX = 60
"""Attempts in a row without a commit, RETRY_S_MAX apart in the end: five minutes cover a failover of Postgres."""
RETRY_S_MIN, RETRY_S_MAX = 0.1, 5.0

TRANSACTIONS = (events.TRANSACTION_ADDED, events.TRANSACTION_MODIFIED)

Row = TypeVar("Row")

_log = logs.logger(__name__)


class Log(Protocol):
    """Source of records: runtime.archive.log_reader.LogReader."""

    def read(self, partition: int, start: int, end: int) -> AsyncGenerator[list[Received], None]:
        """Return all records from `start` up to `end`, in order. Raises: Halt, where one is missing; Retry."""


class Version(NamedTuple):
    """The version that is filled. Below the offsets in `published`, by partition, it has no encoded events."""

    number: int
    published: Mapping[int, int]


class Replayed(Struct):
    """Counts of what was replayed, by the heads of the records."""

    records: int = 0
    events: int = 0
    transactions: int = 0

    def add(self, other: "Replayed") -> None:
        """Add other counts."""
        self.records += other.records
        self.events += other.events
        self.transactions += other.transactions


OnReplayed = Callable[[Replayed], None]
"""Called after each commit with its counts."""


class Loader:
    """Loader of one version. Several processes may load at once, each its own partitions."""

    def __init__(self, settings: Settings, log: Log, version: Version, on_replayed: OnReplayed) -> None:
        self._log = log
        self._on_replayed = on_replayed
        self._commits = 0
        self._bytes_max = settings.batch_bytes_max
        # Commits do not wait for the disk: Postgres loses rows and positions together, and the load continues there.
        self._session = Session(settings, schema=NEXT, durable=False)
        self._projector = Projector(
            self._session,
            None,
            OwnerCache(Keyring(Vault(settings.master_key()))),
            settings,
            version=version.number,
            published=version.published,
        )

    async def close(self) -> None:
        """Close the connection to Postgres."""
        await self._session.close()

    async def remaining(self, targets: Mapping[int, int] | None = None) -> dict[int, Ends]:
        """Return the offsets of each partition to replay, up to the live version's positions or given ones.

        Raises: Retry, where Postgres does not answer.
        """
        try:
            rows = await (await self._session.connection()).fetch(_LEFT)
        except LATE as error:
            self._session.drop()
            raise Retry(f"Postgres: {reason(error)}") from error
        ends = {row["partition"]: Ends(row["next"], row["live"]) for row in rows}
        if targets is not None:
            ends = {number: Ends(ends[number].start, end) for number, end in targets.items()}
        return {number: span for number, span in ends.items() if span.start < span.end}

    async def load(self, targets: Mapping[int, int]) -> None:
        """Replay up to these offsets, by partition.

        Idempotence: it continues at the positions of the version, wherever the last attempt ended.
        Raises: Diverged, where a record cannot be replayed as it was first read; Halt; Retry, where Kafka or Postgres
        stay away.
        """
        commits, tries, backoff = self._commits, 0, Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while True:
            try:
                return await self._pass(targets)
            except (Retry, *LATE) as error:
                self._session.drop()
                tries += 1
                if commits != self._commits:
                    commits, tries = self._commits, 0
                    backoff.reset()
                if tries > TRIES_MAX:
                    raise Retry(f"the rebuild cannot go on: {reason(error)}") from error
                _log.warning("rebuild waits", reason=reason(error))
                await backoff.wait()

    async def _pass(self, targets: Mapping[int, int]) -> None:
        spans = await self.remaining(targets)
        async with aclosing(_ahead(_batches(_records(self._log, spans), self._bytes_max))) as batches:
            async for batch in batches:
                await self._projector.project(batch)
                self._commits += 1
                self._on_replayed(_replayed(batch))


@asynccontextmanager
async def open_loader(settings: Settings, version: Version, on_replayed: OnReplayed) -> AsyncIterator[Loader]:
    """Open a loader on the log of archive and topic. Raises: Retry, where no broker answers."""
    async with looking(LogReader(settings, CHANGESETS)) as log:
        loader = Loader(settings, log, version, on_replayed)
        try:
            yield loader
        finally:
            await loader.close()


async def _batches(records: AsyncGenerator[LogRecord, None], bytes_max: int) -> AsyncGenerator[list[LogRecord], None]:
    batch: list[LogRecord] = []
    count = size = 0
    async with aclosing(records):
        async for record in records:
            events_count = sum(record.head.counts.values())
            is_full = count + events_count > EVENTS_MAX or size >= bytes_max or len(batch) >= RECORDS_MAX
            if batch and is_full:
                yield batch
                batch, count, size = [], 0, 0
            batch.append(record)
            count += events_count
            size += len(record.received.value)
    if batch:
        yield batch


async def _records(log: Log, spans: Mapping[int, Ends]) -> AsyncGenerator[LogRecord, None]:
    """Iterate over all records of the spans, one partition after the other."""
    readers = [log.read(number, span.start, span.end) for number, span in spans.items()]
    is_little = sum(span.end - span.start for span in spans.values()) <= AT_ONCE_MAX
    first = [asyncio.create_task(_next(reader)) for reader in (readers if is_little else readers[:1])]
    try:
        for number, reader in enumerate(readers):
            records = await first[number] if number < len(first) else await _next(reader)
            while records is not None:
                for record in records:
                    yield decode_record(record)
                records = await _next(reader)
    finally:
        for task in first:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)
        for reader in readers:
            await reader.aclose()


async def _next(lists: AsyncGenerator[list[Row], None]) -> list[Row] | None:
    return await anext(lists, None)


async def _ahead(batches: AsyncGenerator[list[LogRecord], None]) -> AsyncGenerator[list[LogRecord], None]:
    """Iterate over batches; the next one is read while one is processed."""
    reading = asyncio.create_task(_next(batches))
    try:
        while (batch := await reading) is not None:
            reading = asyncio.create_task(_next(batches))
            yield batch
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await batches.aclose()


def _replayed(batch: list[LogRecord]) -> Replayed:
    counts = [record.head.counts for record in batch]
    return Replayed(
        len(batch),
        sum(sum(count.values()) for count in counts),
        sum(count.get(kind, 0) for count in counts for kind in TRANSACTIONS),
    )


_LEFT = f"""
SELECT partition, made.position AS next, live.position AS live
  FROM {NEXT}.positions made JOIN {SCHEMA}.positions live USING (partition) ORDER BY partition"""
