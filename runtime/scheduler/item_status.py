"""Status of Items for operators: state, quarantines, withheld records."""

from datetime import datetime
from typing import Any

import asyncpg
import msgspec
from msgspec import Struct

from runtime.scheduler.stop_reasons import QUARANTINED, remedy

ITEMS_MAX = 1_000
"""Items of one list: more is a task for SQL."""
ONLY = ("quarantined", "stopped", "failing", "withheld")
"""Filters of a list of Items."""


class QuarantinedSince(Struct):
    """An open quarantine. `first_offset` -1: it has no record, because streams or an operator set the Item aside."""

    first_offset: int
    reason: str
    reader: str
    quarantined_at: datetime


class ItemStatus(Struct):
    """The status of an Item. `withheld`: number of records that wait for its redrive.

    `missing_rows`: transactions whose removal waits for a decision about the changeset `missing_changeset_id` (hex).
    """

    item_id: str
    tenant: str
    user: int
    partition: int
    institution_id: str | None
    institution_name: str | None
    linked_at: datetime | None
    state: str | None
    code: str | None
    history_status: str | None
    stopped: str | None
    remedy: str | None
    attempts: int
    last_error: dict[str, Any] | None
    due_at: datetime | None
    not_before: datetime | None
    last_webhook_at: datetime | None
    last_synced_at: datetime | None
    bank_updated_at: datetime | None
    missing_rows: int
    missing_changeset_id: str | None
    quarantines: list[QuarantinedSince]
    withheld: int


async def find(connection: asyncpg.Connection, item_id: str, *, projection: str) -> ItemStatus | None:
    """Return the status of an Item; None where there is none. `projection`: schema of the live tables."""
    row = await connection.fetchrow(_FIND.format(projection=projection), item_id)
    return None if row is None else _status(row)


async def list_items(
    connection: asyncpg.Connection, *, projection: str, only: str | None, tenant: str | None, limit: int
) -> list[ItemStatus]:
    """Return Items, the latest linked first: all, or those of a filter from ONLY."""
    rows = await connection.fetch(_LIST.format(projection=projection), only, tenant, min(limit, ITEMS_MAX))
    return [_status(row) for row in rows]


def _status(row: asyncpg.Record) -> ItemStatus:
    quarantines = msgspec.json.decode(row["quarantines"], type=list[QuarantinedSince])
    stopped = QUARANTINED if quarantines else row["stopped"]
    error = row["last_error"]
    decoded = {
        "quarantines": quarantines,
        "stopped": stopped,
        "remedy": remedy(stopped),
        "last_error": None if error is None else msgspec.json.decode(error, type=dict[str, Any]),
    }
    return ItemStatus(**{**row, **decoded})


_COLUMNS = """
    SELECT s.item_id, s.tenant, s.user_number AS user, s.partition, s.institution_id, c.institution_name,
        s.created_at AS linked_at, h.state, h.code, h.history_status, s.stopped, s.attempts, s.last_error, s.due_at,
        s.not_before, s.last_webhook_at, s.last_synced_at, s.bank_updated_at,
        coalesce(r.missing_rows, 0) AS missing_rows, encode(r.missing_changeset_id, 'hex') AS missing_changeset_id,
        k.quarantines, w.withheld
    FROM tartan.sync_state s
    LEFT JOIN tartan.credentials c USING (item_id)
    LEFT JOIN tartan.heads h USING (item_id)
    LEFT JOIN reads.items r USING (item_id)
    CROSS JOIN LATERAL (
        SELECT coalesce(jsonb_agg(jsonb_build_object('first_offset', first_offset, 'reason', reason, 'reader', reader,
            'quarantined_at', quarantined_at) ORDER BY quarantined_at), '[]') AS quarantines
        FROM tartan.quarantines WHERE quarantines.item_id = s.item_id AND redrive_offset IS NULL) k
    CROSS JOIN LATERAL (SELECT count(*) AS withheld FROM {projection}.withheld WHERE withheld.item_id = s.item_id) w"""

_FIND = f"{_COLUMNS} WHERE s.item_id = $1"

_LIST = f"""{_COLUMNS}
    WHERE ($2::text IS NULL OR s.tenant = $2) AND CASE $1::text
        WHEN 'quarantined' THEN s.stopped = 'quarantined' OR k.quarantines <> '[]'
        WHEN 'stopped' THEN s.stopped IS NOT NULL
        WHEN 'failing' THEN s.attempts > 0
        WHEN 'withheld' THEN r.missing_rows > 0
        ELSE true END
    ORDER BY s.created_at DESC, s.item_id LIMIT $3"""
