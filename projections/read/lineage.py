"""Trace an offset of the log to its cause: the changeset, Plaid's request ids, and the webhook, tick or person.

Shape: as in projections.read.queries; a changeset's `place` is `partition:offset`, as in a stream's positions.
"""

import json
from collections.abc import Collection
from typing import Any, NamedTuple

import asyncpg

from projections.read.queries import Row, StoredRow, to_json
from schemas.times import rfc3339

PLACES_MAX = 1_000
"""Offsets that one statement looks up."""
REDRIVEN_MAX = 100
"""Most redriven records that are listed with their redrive."""

WEBHOOK, TICK, USER, OPERATOR = "webhook", "tick", "user", "operator"
_ORIGINS = {
    "webhook": WEBHOOK,
    "schedule": TICK,
    "retry": TICK,
    "sweep": TICK,
    "operator": OPERATOR,
    "link": USER,
    "manual": USER,
    "unlink": USER,
    "user": USER,
}
"""Origin of a cause: Plaid's webhook, our clock, or a person, who uses the application or operates it."""


class LogOffset(NamedTuple):
    """Partition and offset of a record in `changesets`; as text `partition:offset`."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


async def changesets(connection: asyncpg.Connection, offsets: Collection[LogOffset]) -> dict[str, Row]:
    """Return the changesets at these offsets, at most PLACES_MAX, by `partition:offset`; unknown ones are absent."""
    asked = sorted(set(offsets))[:PLACES_MAX]
    rows = await connection.fetch(_AT, [log.partition for log in asked], [log.offset for log in asked])
    by_offset = {str(_log_offset(row)): changeset(row) for row in rows}
    for redrive in [shown for shown in by_offset.values() if shown["type"] == "redrive"]:
        freed = await connection.fetch(
            _FREED, redrive["item_id"], redrive["partition"], redrive["offset"], REDRIVEN_MAX
        )
        redrive["redrives"] = [changeset(row) for row in freed]
    return by_offset


async def by_id(connection: asyncpg.Connection, changeset_id: bytes) -> LogOffset | None:
    """Return the offset of the accepted record with this id."""
    row = await connection.fetchrow(_BY_ID, changeset_id)
    return None if row is None else _log_offset(row)


def changeset(row: StoredRow) -> Row:
    """Return a changeset for readers."""
    cause = json.loads(row["cause"])
    return {
        "place": str(_log_offset(row)),
        "id": row["id"].hex(),
        "partition": row["partition"],
        "offset": row["source_offset"],
        "kind": row["kind"],
        "type": row["type"],
        "item_id": row["item_id"],
        "said": json.loads(row["counts"]),
        "net_events": row["net_events"],
        "origin": _origin(cause),
        "request_ids": cause.get("request_ids", []),
        "redriven_by": row["redriven_by"],
        **to_json({name: row[name] for name in ("produced_at", "known_at")}),
    }


def _origin(cause: dict[str, Any]) -> Row:
    # A cause of a later version has a name too, and its kind is unknown here.
    origin: Row = {"kind": _ORIGINS.get(cause["kind"], "unknown"), "cause": cause["kind"], "by": cause.get("by")}
    if cause.get("webhook_offset") is not None:
        received_at = cause.get("webhook_received_at")
        origin["webhook"] = {
            "partition": cause.get("webhook_partition"),
            "offset": cause["webhook_offset"],
            "received_at": None if received_at is None else rfc3339(received_at),
        }
    return origin


def _log_offset(row: StoredRow) -> LogOffset:
    return LogOffset(row["partition"], row["source_offset"])


_COLUMNS = """c.partition, c.source_offset, c.id, c.item_id, c.kind, c.type, c.cause, c.counts, c.net_events,
       c.redriven_by, c.produced_at, c.known_at"""

_AT = f"""
SELECT {_COLUMNS} FROM unnest($1::int[], $2::bigint[]) AS w(partition, source_offset)
  JOIN reads.changesets c USING (partition, source_offset)"""

_FREED = f"""
SELECT {_COLUMNS} FROM reads.changesets c
 WHERE c.item_id = $1 AND c.partition = $2 AND c.redriven_by = $3 ORDER BY c.source_offset LIMIT $4"""

_BY_ID = "SELECT partition, source_offset FROM reads.changesets WHERE id = $1"
