"""What a transaction has been: each version with what changed in it, and the changeset that made it."""

from typing import NamedTuple

import asyncpg

from projections.events.field_diff import changed_fields
from projections.ledger import override_rules
from projections.read import as_of
from projections.read.lineage import LogOffset, changesets
from projections.read.queries import PAGE_MAX, Row, StoredRow, to_json
from schemas import events
from schemas.encoding import codec
from schemas.log.records import Account

USER_FIELDS = "user_fields."
"""Before the name of a field that the user speaks of."""


class Versions(NamedTuple):
    """Versions, newest first, and the number below which the next page begins: None after the last one."""

    rows: list[Row]
    next: int | None


async def versions(
    connection: asyncpg.Connection, user: int, own_id: bytes, *, limit: int = 100, before: int | None = None
) -> Versions | None:
    """A page of the versions of a user's transaction, `before` a number; None where there is no such transaction."""
    limit = min(limit, PAGE_MAX)
    found = await connection.fetch(_VERSIONS, own_id, user, before, limit + 1)
    if not found:
        return None if before is None else Versions([], None)
    page = found[:limit]
    made = await changesets(connection, [_place(row) for row in page])
    numbered = {row["version"]: row for row in found}
    rows = [
        {**_version(row, numbered.get(row["version"] - 1)), "changeset": made.get(str(_place(row)))} for row in page
    ]
    return Versions(rows, page[-1]["version"] if len(found) > limit else None)


def differences(older: StoredRow, newer: StoredRow) -> list[Row]:
    """The fields in which two versions differ, with what they said: first the bank's, then the user's."""
    schemas = older["payload_schema"], newer["payload_schema"]
    names = changed_fields(older["payload"], schemas[0], newer["payload"], schemas[1])
    old, new = (codec.decoder(row["payload_schema"])(row["payload"], 0)[0] for row in (older, newer))
    said: list[Row] = [
        {"field": name, "before": getattr(old, name, None), "after": getattr(new, name, None)} for name in names
    ]
    users_old, users_new = (override_rules.values(older["user_fields"]), override_rules.values(newer["user_fields"]))
    return said + [
        {"field": USER_FIELDS + name, "before": users_old.get(name), "after": users_new.get(name)}
        for name in override_rules.changed(older["user_fields"], newer["user_fields"])
    ]


def report(row: StoredRow) -> Row:
    """What was reported of an account."""
    payload: Account = codec.decoder(row["payload_schema"])(row["payload"], 0)[0]
    return {
        "version": row["version"],
        "source": row["source"],
        "current": payload.current,
        "available": payload.available,
        "limit": payload.limit,
        "currency": payload.currency,
        **to_json({"known_at": row["known_at"]}),
    }


def _version(row: StoredRow, older: asyncpg.Record | None) -> Row:
    """A version and what it changed. Both `event` and `changed` are None where the one before it is not kept."""
    is_first = row["version"] == 1
    return {
        **as_of.transaction(row),
        "event": None if older is None and not is_first else _event(row, older),
        "changed": differences(older, row) if older is not None else [] if is_first else None,
    }


def _event(row: StoredRow, older: asyncpg.Record | None) -> str | None:
    """The event that told of this version; None where readers have it neither before nor after."""
    was, is_ = older is not None and _is_shown(older), _is_shown(row)
    match was, is_:
        case True, True:
            return events.TRANSACTION_MODIFIED
        case True, False:
            return events.TRANSACTION_REMOVED
        case False, True:
            return events.TRANSACTION_ADDED
    return None


def _is_shown(row: StoredRow) -> bool:
    return row["removed_at"] is None and row["review"] is None


def _place(row: StoredRow) -> LogOffset:
    return LogOffset(row["partition"], row["changeset"])


_COLUMNS = (
    "own_id, item_id, transaction_id, version, payload, payload_schema, user_fields, removed_at, review, known_at"
)

# All of a user is in one partition, so each Item that the transaction went through says which.
_VERSIONS = f"""
SELECT v.*, i.partition
  FROM (SELECT {_COLUMNS}, changeset FROM reads.transaction_versions WHERE own_id = $1 AND user_number = $2
         UNION ALL
        SELECT {_COLUMNS}, last_changeset FROM reads.transactions WHERE own_id = $1 AND user_number = $2) AS v
  JOIN reads.items i USING (item_id)
 WHERE v.version < coalesce($3::int, 2147483647) ORDER BY v.version DESC LIMIT $4"""
