"""Sync counts: count a changeset's net events by type, and the bank's changes that led to none.

A change without new content has no event: Plaid sends rows as modified that are the same to the last byte
(PLAID.md 1.2, 11). The counts of a changeset never change, so they are cached.
"""

import asyncio
from collections import OrderedDict
from typing import NamedTuple

import asyncpg
import msgspec

from projections.read.event_counts import TRANSACTION_TYPES, transaction_counts

CACHE_MAX = 20_000
"""Cached counts, about 200 bytes each."""
ON_LOOP_BYTES_MAX = 16 * 1024
"""Compressed events that are counted on the event loop, about 1 ms; more are counted in a thread."""


class AppliedCounts(NamedTuple):
    """Transactions that a changeset added, modified and removed for readers.

    `no_op`: the bank's changes less events: changes without new content, and one of the two changes (an addition and a
    removal) of a pending transaction that posted, which is one modification.
    """

    added: int
    modified: int
    removed: int
    no_op: int


class SyncCounts:
    """Counts by partition and offset of a changeset."""

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[int, int], AppliedCounts] = OrderedDict()

    async def of(self, connection: asyncpg.Connection, partition: int, offset: int) -> AppliedCounts | None:
        """Return a changeset's counts; None where it was not accepted, is withheld, or its events are expired.

        The events of a withheld changeset are in the row of its redrive, with those of others.
        """
        position = (partition, offset)
        if position in self._cache:
            return self._cache[position]
        row = await connection.fetchrow(_CHANGESET, partition, offset)
        if row is None or row["redriven_by"] != row["freed_at"] or (row["events"] is None and row["net_events"]):
            return None
        events: bytes = row["events"] or b""
        source: bytes | None = None if row["redriven_by"] is None else row["id"]
        if len(events) > ON_LOOP_BYTES_MAX:
            net = await asyncio.to_thread(transaction_counts, events, source)
        else:
            net = transaction_counts(events, source)
        changes = msgspec.json.decode(row["counts"], type=dict[str, int])
        added, modified, removed = (net[kind] for kind in TRANSACTION_TYPES)
        no_op = max(0, sum(changes.get(kind, 0) for kind in TRANSACTION_TYPES) - added - modified - removed)
        counts = self._cache[position] = AppliedCounts(added, modified, removed, no_op)
        if len(self._cache) > CACHE_MAX:
            self._cache.popitem(last=False)
        return counts


async def is_accepted(connection: asyncpg.Connection, partition: int, offset: int) -> bool:
    """Return whether the record at this offset was accepted and its effect is visible."""
    return bool(await connection.fetchval(_IS_ACCEPTED, partition, offset))


# The events of a withheld changeset are stored at the redrive that applied it.
_CHANGESET = """
    SELECT c.id, c.counts, c.redriven_by, r.source_offset AS freed_at,
        CASE WHEN c.redriven_by IS NULL THEN c.net_events ELSE r.net_events END AS net_events,
        CASE WHEN c.redriven_by IS NULL THEN c.events ELSE r.events END AS events
    FROM reads.changesets c
    LEFT JOIN reads.changesets r ON r.partition = c.partition AND r.source_offset = c.redriven_by
    WHERE c.partition = $1 AND c.source_offset = $2"""

# A withheld changeset has no row before its redrive.
_IS_ACCEPTED = "SELECT EXISTS (SELECT FROM reads.changesets WHERE partition = $1 AND source_offset = $2)"
