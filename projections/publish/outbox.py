"""Read and write the publisher's tables: checkpoints, held topics, and net events that a crash left unpublished."""

from collections.abc import Mapping

import asyncpg

from projections.events import public_events
from projections.publish.kafka_records import ChangesetEvents
from projections.store.rows import decompress
from projections.store.tables import SCHEMA
from runtime.postgres.errors import POSTGRES_ERRORS
from schemas.errors import Retry
from schemas.log.gate import REDRIVE
from schemas.times import to_micros

ROWS_MAX = 200
"""Changesets of one read: at most 20 MB of events each, usually some kilobytes."""


class Outbox:
    """Run the publisher's statements on a pool. Each method raises Retry while Postgres is away."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def read_checkpoint(self, partition: int) -> int:
        """Return the offset below which all events of a partition were acknowledged."""
        try:
            return int(await self._pool.fetchval(_CHECKPOINT, partition) or 0)
        except POSTGRES_ERRORS as error:
            raise Retry(f"no checkpoint of partition {partition}: {type(error).__name__}") from error

    async def read_changesets(self, partition: int, start: int, end: int) -> list[ChangesetEvents]:
        """Return the first ROWS_MAX changesets with net events from `start` up to `end`, in order."""
        try:
            rows = await self._pool.fetch(_EVENTS, partition, start, end, ROWS_MAX)
        except POSTGRES_ERRORS as error:
            raise Retry(f"no events of partition {partition}: {type(error).__name__}") from error
        return [changeset_events(row) for row in rows]

    async def read_held_topics(self) -> dict[tuple[str, int], int]:
        """Return the topics and partitions that `tartan republish` fills, each with the first offset of its hold.

        No other process sends the events of changesets at this offset or above it there.
        """
        try:
            return {(row["topic"], row["partition"]): row["since"] for row in await self._pool.fetch(_HELD)}
        except POSTGRES_ERRORS as error:
            raise Retry(f"no held topics: {type(error).__name__}") from error

    async def store_checkpoints(self, checkpoints: Mapping[int, int]) -> None:
        """Raise checkpoints; one that is higher already stays."""
        if not checkpoints:
            return
        try:
            await self._pool.execute(_STORE, list(checkpoints), list(checkpoints.values()))
        except POSTGRES_ERRORS as error:
            raise Retry(f"checkpoints not stored: {type(error).__name__}") from error


def changeset_events(row: asyncpg.Record) -> ChangesetEvents:
    """Decode a changeset with its net events from a row of the table `changesets`."""
    return ChangesetEvents(
        row["partition"],
        row["source_offset"],
        row["id"],
        row["user_number"],
        row["item_id"],
        to_micros(row["known_at"]) or 0,
        public_events.decode_block(decompress(row["events"])),
        row["type"] == REDRIVE,
    )


_HELD = "SELECT topic, partition, since FROM tartan.held_topics"

_CHECKPOINT = "SELECT published FROM tartan.published_checkpoints WHERE partition = $1"

# Events whose bytes are expired are older than the topics' retention, so no topic lacks them.
_EVENTS = f"""
SELECT partition, source_offset, id, type, user_number, item_id, known_at, events FROM {SCHEMA}.changesets
 WHERE partition = $1 AND source_offset >= $2 AND source_offset < $3 AND net_events > 0 AND events IS NOT NULL
 ORDER BY source_offset LIMIT $4"""

_STORE = """
INSERT INTO tartan.published_checkpoints AS f (partition, published) SELECT * FROM unnest($1::int[], $2::bigint[])
ON CONFLICT (partition) DO UPDATE SET published = greatest(f.published, excluded.published)"""
