"""How Items stand, for an operator who looks at one or at all: state, item_quarantine, what is withheld."""

from datetime import datetime
from typing import Any

import asyncpg
import msgspec
from msgspec import Struct

from runtime.scheduler.stop_reasons import QUARANTINED, remedy

ITEMS_MAX = 1_000
"""Items of one list: more is a job for SQL."""
ONLY = ("quarantined", "stopped", "failing", "withheld")
"""Which Items a list can be narrowed to."""


class QuarantinedSince(Struct):
    """A item_quarantine that is open. `first_offset` -1: there is no record, streams or an operator set the Item aside."""

    first_offset: int
    reason: str
    reader: str
    quarantined_at: datetime


class ItemStatus(Struct):
    """An Item as the tables have it. `withheld`: records that wait for its redrive.

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
    """One Item; None where there is none of this id. `projection`: schema of the live tables."""
    [*found] = await connection.fetch(_ONE.format(projection=projection), item_id)
    return _item(found[0]) if found else None


async def list_items(
    connection: asyncpg.Connection, *, projection: str, only: str | None, tenant: str | None, limit: int
) -> list[ItemStatus]:
    """Items, the latest linked first: all, or those of ONLY."""
    rows = await connection.fetch(_ALL.format(projection=projection), only, tenant, min(limit, ITEMS_MAX))
    return [_item(row) for row in rows]


def _item(row: asyncpg.Record) -> ItemStatus:
    quarantines = msgspec.json.decode(row["quarantines"], type=list[QuarantinedSince])
    stopped = QUARANTINED if quarantines else row["stopped"]
    return ItemStatus(
        **{
            **row,
            "quarantines": quarantines,
            "stopped": stopped,
            "remedy": remedy(stopped),
            "last_error": _json(row["last_error"]),
        }
    )


def _json(text: str | None) -> dict[str, Any] | None:
    return None if text is None else msgspec.json.decode(text, type=dict[str, Any])


_COLUMNS = """
    SELECT s.item_id, s.tenant, s.user_number AS user, s.partition, s.institution_id, c.institution_name,
        s.created_at AS linked_at, h.state, h.code, h.history_status, s.stopped, s.attempts, s.last_error, s.due_at,
        s.not_before, s.last_webhook_at, s.last_synced_at, s.bank_updated_at,
        coalesce(r.missing_rows, 0) AS missing_rows, encode(r.missing_changeset_id, 'hex') AS missing_changeset_id, k.quarantines,
        w.withheld
    FROM tartan.sync_state s
    LEFT JOIN tartan.credentials c USING (item_id)
    LEFT JOIN tartan.heads h USING (item_id)
    LEFT JOIN reads.items r USING (item_id)
    CROSS JOIN LATERAL (
        SELECT coalesce(jsonb_agg(jsonb_build_object('first_offset', first_offset, 'reason', reason, 'reader', reader,
            'quarantined_at', quarantined_at) ORDER BY quarantined_at), '[]') AS quarantines
        FROM tartan.quarantines WHERE quarantines.item_id = s.item_id AND redrive_offset IS NULL) k
    CROSS JOIN LATERAL (SELECT count(*) AS withheld FROM {projection}.withheld WHERE withheld.item_id = s.item_id) w"""

_ONE = f"{_COLUMNS} WHERE s.item_id = $1"

_ALL = f"""{_COLUMNS}
    WHERE ($2::text IS NULL OR s.tenant = $2) AND CASE $1::text
        WHEN 'quarantined' THEN s.stopped = 'quarantined' OR k.quarantines <> '[]'
        WHEN 'stopped' THEN s.stopped IS NOT NULL
        WHEN 'failing' THEN s.attempts > 0
        WHEN 'withheld' THEN r.missing_rows > 0
        ELSE true END
    ORDER BY s.created_at DESC, s.item_id LIMIT $3"""
