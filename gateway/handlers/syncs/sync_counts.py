"""What projections made of a changeset: net events by type, beside what the bank had sent.

An event that says nothing new is none: Plaid sends rows as modified that are the same to the last byte
(PLAID.md 1.2, 11). What is counted never changes, so it is kept.
"""

import asyncio
from collections import OrderedDict
from typing import NamedTuple

import asyncpg
import msgspec

from projections.read.event_counts import TRANSACTION_TYPES, transaction_counts

KEPT_MAX = 20_000
"""About 200 bytes each."""
ON_LOOP_BYTES_MAX = 16 * 1024
"""Compressed events that are counted on the event loop, about 1 ms; more are counted in a thread."""


class Applied(NamedTuple):
    """Transactions that a changeset added, modified and removed for readers.

    `no_op`: changes in the bank's words less events: what said nothing new, and of a pending that posted (an
    addition and a removal, which are one modification) one of the two.
    """

    added: int
    modified: int
    removed: int
    no_op: int


class Counts:
    """Counts changesets, and keeps what it counted."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, int], Applied] = OrderedDict()

    async def of(self, connection: asyncpg.Connection, partition: int, offset: int) -> Applied | None:
        """What a changeset applied; None where it was not accepted, is withheld, or its events are expired.

        What a redrive applied stands in the redrive's row, with what it freed beside.
        """
        place = (partition, offset)
        if place in self._kept:
            return self._kept[place]
        row = await connection.fetchrow(_CHANGESET, partition, offset)
        if row is None or row["redriven_by"] != row["freed_at"] or (row["events"] is None and row["net_events"]):
            return None
        events: bytes = row["events"] or b""
        said_by: bytes | None = None if row["redriven_by"] is None else row["id"]
        large = len(events) > ON_LOOP_BYTES_MAX
        net = (
            await asyncio.to_thread(transaction_counts, events, said_by)
            if large
            else transaction_counts(events, said_by)
        )
        said = msgspec.json.decode(row["counts"], type=dict[str, int])
        added, modified, removed = (net[kind] for kind in TRANSACTION_TYPES)
        no_op = max(0, sum(said.get(kind, 0) for kind in TRANSACTION_TYPES) - added - modified - removed)
        applied = self._kept[place] = Applied(added, modified, removed, no_op)
        if len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)
        return applied


async def is_accepted(connection: asyncpg.Connection, partition: int, offset: int) -> bool:
    """Whether the record at this place was accepted and its outcome is shown."""
    return bool(await connection.fetchval(_IS_ACCEPTED, partition, offset))


# What was withheld has its events at the redrive that freed it.
_CHANGESET = """
    SELECT c.id, c.counts, c.redriven_by, r.source_offset AS freed_at,
        CASE WHEN c.redriven_by IS NULL THEN c.net_events ELSE r.net_events END AS net_events,
        CASE WHEN c.redriven_by IS NULL THEN c.events ELSE r.events END AS events
    FROM reads.changesets c
    LEFT JOIN reads.changesets r ON r.partition = c.partition AND r.source_offset = c.redriven_by
    WHERE c.partition = $1 AND c.source_offset = $2"""

# What is withheld has no row before its redrive.
_IS_ACCEPTED = """
    SELECT EXISTS (SELECT FROM reads.changesets WHERE partition = $1 AND source_offset = $2)"""
