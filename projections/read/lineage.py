"""From a place in the log back to what caused it: the changeset there, Plaid's request ids, and the webhook, the tick
or the person behind it.

Shape: as in projections.read.queries; a changeset's `place` is `partition:offset`, as in a stream's positions.
"""

import json
from collections.abc import Collection
from typing import Any, NamedTuple

import asyncpg

from projections.read.queries import Row, StoredRow, to_json
from schemas.times import rfc3339

PLACES_MAX = 1_000
"""Places that one statement looks up."""
REDRIVEN_MAX = 100
"""Records that a redrive freed and that are listed with it: they came one after another while the Item was quarantined."""

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
"""What a cause comes from: Plaid's word, our clock, or a person, who asked the application or is its operator."""


class LogOffset(NamedTuple):
    """Where a changeset is in the log."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


async def changesets(connection: asyncpg.Connection, places: Collection[LogOffset]) -> dict[str, Row]:
    """The changesets at places, at most PLACES_MAX of them, by `partition:offset`; those of no place are left out."""
    wanted = sorted(set(places))[:PLACES_MAX]
    partitions, offsets = [one.partition for one in wanted], [one.offset for one in wanted]
    found = {str(_place(row)): changeset(row) for row in await connection.fetch(_AT, partitions, offsets)}
    redrives = [one for one in found.values() if one["type"] == "redrive"]
    for one in redrives:
        freed = await connection.fetch(_FREED, one["item_id"], one["partition"], one["offset"], REDRIVEN_MAX)
        one["redrives"] = [changeset(row) for row in freed]
    return found


async def by_id(connection: asyncpg.Connection, number: bytes) -> LogOffset | None:
    """The place of the accepted record with this id."""
    row = await connection.fetchrow(_PLACE_OF, number)
    return None if row is None else _place(row)


def changeset(row: StoredRow) -> Row:
    """A changeset for readers."""
    cause = json.loads(row["cause"])
    return {
        "place": str(_place(row)),
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
    """What started it. `kind` is unknown where the cause is of a later version; it is named all the same."""
    origin: Row = {"kind": _ORIGINS.get(cause["kind"], "unknown"), "cause": cause["kind"], "by": cause.get("by")}
    if cause.get("webhook_offset") is not None:
        received_at = cause.get("webhook_received_at")
        origin["webhook"] = {
            "partition": cause.get("webhook_partition"),
            "offset": cause["webhook_offset"],
            "received_at": None if received_at is None else rfc3339(received_at),
        }
    return origin


def _place(row: StoredRow) -> LogOffset:
    return LogOffset(row["partition"], row["source_offset"])


_COLUMNS = """c.partition, c.source_offset, c.id, c.item_id, c.kind, c.type, c.cause, c.counts, c.net_events,
       c.redriven_by, c.produced_at, c.known_at"""

_AT = f"""
SELECT {_COLUMNS} FROM unnest($1::int[], $2::bigint[]) AS w(partition, source_offset)
  JOIN reads.changesets c USING (partition, source_offset)"""

_FREED = f"""
SELECT {_COLUMNS} FROM reads.changesets c
 WHERE c.item_id = $1 AND c.partition = $2 AND c.redriven_by = $3 ORDER BY c.source_offset LIMIT $4"""

_PLACE_OF = "SELECT partition, source_offset FROM reads.changesets WHERE id = $1"
