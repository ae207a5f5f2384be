"""Expire the encoded events of changesets when no topic has them any more; their digest and count stay.

Until then a restart publishes them after a crash, and a check compares the topics with them.
"""

import asyncio
from datetime import timedelta

import asyncpg

from projections.store.tables import SCHEMA
from runtime import logs, metrics
from runtime.postgres.errors import AWAY, reason
from schemas.topics import PUBLIC, PUSH

RETENTION = timedelta(milliseconds=max(topic.retention_ms or 0 for topic in (*PUBLIC, PUSH)))
"""Longest retention of the topics with events."""
EVERY_S = 3600.0
ROWS_MAX = 5_000
"""Rows that one statement reads: tens of milliseconds, and no row is locked for longer."""
STATEMENTS_MAX = 1_000
"""Statements of one run for one partition: 5,000,000 rows an hour, 1,400 changesets a second. The next run continues;
without a bound the first run over years of rows would not end."""

_log = logs.logger(__name__)


class Expiry:
    """Expire events periodically. Several processes may run at once: expiring a row twice changes nothing."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._version: int | None = None
        self._next: dict[int, int] = {}

    async def run_forever(self) -> None:
        """Run at once and then every EVERY_S, for ever."""
        while True:
            try:
                await self.run_once()
            except AWAY as error:
                metrics.RETRIES.labels("projections", "expiry").inc()
                _log.warning("events are not expired", reason=reason(error))
            await asyncio.sleep(EVERY_S)

    async def run_once(self) -> None:
        """Expire the events that are older than RETENTION and below their partition's checkpoint.

        Idempotence: where a run ends early, the next one continues.
        """
        version = await self._pool.fetchval(_VERSION)
        if version != self._version:  # a swap: the positions of the old tables do not apply
            self._version, self._next = version, {}
        for row in await self._pool.fetch(_CHECKPOINTS):
            await self._partition(row["partition"], row["published"])

    async def _partition(self, partition: int, checkpoint: int) -> None:
        for _ in range(STATEMENTS_MAX):
            start = self._next.get(partition, 0)
            row = await self._pool.fetchrow(_EXPIRE, partition, start, checkpoint, RETENTION, ROWS_MAX)
            assert row is not None
            if row["old"]:
                self._next[partition] = row["last"] + 1
            if row["old"] < ROWS_MAX:
                return


_VERSION = f"SELECT number FROM {SCHEMA}.version"

_CHECKPOINTS = "SELECT partition, published FROM tartan.published_checkpoints ORDER BY partition"

# known_at never decreases within a partition (redriven rows do, and store no events), so old rows are a range
# at the front of the primary key. A run begins where the last one ended and ends at the first young row, without an
# index of its own.
_EXPIRE = f"""
WITH seen AS (
    SELECT source_offset, known_at < now() - $4::interval AS is_old, events IS NOT NULL AS has_events
      FROM {SCHEMA}.changesets
     WHERE partition = $1 AND source_offset >= $2 AND source_offset < $3 AND redriven_by IS NULL
     ORDER BY source_offset LIMIT $5),
expired AS (
    UPDATE {SCHEMA}.changesets c SET events = NULL FROM seen
     WHERE c.partition = $1 AND c.source_offset = seen.source_offset AND seen.is_old AND seen.has_events)
SELECT count(*) FILTER (WHERE is_old) AS old, max(source_offset) FILTER (WHERE is_old) AS last FROM seen"""
