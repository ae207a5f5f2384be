"""Return the versions of a transaction, each with its changed fields and the changeset that caused it."""

from typing import NamedTuple

import asyncpg

from projections.events.field_diff import changed_fields
from projections.ledger import user_field_values
from projections.read import as_of
from projections.read.lineage import LogOffset, changesets
from projections.read.queries import PAGE_MAX, SHOWN, Row, StoredRow, status, to_json
from schemas import events
from schemas.encoding import codec
from schemas.log.records import Account

USER_FIELDS = "user_fields."
"""Prefix of the name of a field that the user sets."""


class Versions(NamedTuple):
    """Versions, newest first, and the `before` of the next page: None after the last one."""

    rows: list[Row]
    next: int | None


async def versions(
    connection: asyncpg.Connection, user: int, own_id: bytes, *, limit: int = 100, before: int | None = None
) -> Versions | None:
    """Return a page of the versions of a user's transaction below `before`; None where there is no such transaction."""
    limit = min(limit, PAGE_MAX)
    rows = await connection.fetch(_VERSIONS, own_id, user, before, limit + 1)
    if not rows:
        return None if before is None else Versions([], None)
    page = rows[:limit]
    causes = await changesets(connection, [_log_offset(row) for row in page])
    by_version = {row["version"]: row for row in rows}
    shown = [
        {**_version(row, by_version.get(row["version"] - 1)), "changeset": causes.get(str(_log_offset(row)))}
        for row in page
    ]
    return Versions(shown, page[-1]["version"] if len(rows) > limit else None)


def differences(older: StoredRow, newer: StoredRow) -> list[Row]:
    """Return the fields in which two versions differ, with both values: first the bank's, then the user's."""
    names = changed_fields(older["payload"], older["payload_schema"], newer["payload"], newer["payload_schema"])
    old, new = (codec.decoder(row["payload_schema"])(row["payload"], 0)[0] for row in (older, newer))
    users_old, users_new = (user_field_values.values(row["user_fields"]) for row in (older, newer))
    return [
        *({"field": name, "before": getattr(old, name, None), "after": getattr(new, name, None)} for name in names),
        *(
            {"field": USER_FIELDS + name, "before": users_old.get(name), "after": users_new.get(name)}
            for name in user_field_values.changed_fields(older["user_fields"], newer["user_fields"])
        ),
    ]


def report(row: StoredRow) -> Row:
    """Return one report of an account's balances."""
    payload: Account = codec.decoder(row["payload_schema"])(row["payload"], 0)[0]
    return {
        "version": row["version"],
        "source": row["source"],
        **{name: getattr(payload, name) for name in ("current", "available", "limit", "currency")},
        **to_json({"known_at": row["known_at"]}),
    }


def _version(row: StoredRow, older: asyncpg.Record | None) -> Row:
    """Return a version with its changes. `event` and `changed` are None where the version before it is not stored."""
    shown = as_of.transaction(row)
    if older is not None:
        return {**shown, "event": _event(row, older), "changed": differences(older, row)}
    is_first = row["version"] == 1
    return {**shown, "event": _event(row, older) if is_first else None, "changed": [] if is_first else None}


def _event(row: StoredRow, older: asyncpg.Record | None) -> str | None:
    """Return the type of the event of this version; None where it is visible neither before nor after."""
    match older is not None and status(older) == SHOWN, status(row) == SHOWN:
        case True, True:
            return events.TRANSACTION_MODIFIED
        case True, False:
            return events.TRANSACTION_REMOVED
        case False, True:
            return events.TRANSACTION_ADDED
    return None


def _log_offset(row: StoredRow) -> LogOffset:
    return LogOffset(row["partition"], row["changeset"])


# All Items of a user are in one partition, so any Item of the transaction has it.
_VERSIONS = f"""
SELECT v.*, i.partition
  FROM (SELECT {as_of.VERSION_COLUMNS}, changeset
          FROM reads.transaction_versions WHERE own_id = $1 AND user_number = $2
         UNION ALL
        SELECT {as_of.VERSION_COLUMNS}, last_changeset
          FROM reads.transactions WHERE own_id = $1 AND user_number = $2) AS v
  JOIN reads.items i USING (item_id)
 WHERE v.version < coalesce($3::int, 2147483647) ORDER BY v.version DESC LIMIT $4"""
