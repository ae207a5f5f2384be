"""Marks: everything that makes an Item's row in `sync_state` due.

A mark raises the Item's generation; the Item is due until a run that began at that generation or later is done. So a
mark during a run causes one more run, and a thousand marks at once cause one.
"""

from collections.abc import Mapping, Sequence

import asyncpg
import msgspec

from runtime.kafka.clients import partition_of
from runtime.kafka.reader import Position
from runtime.scheduler.types import Hint, Lane, Mark
from runtime.users.vault import Vault
from schemas.errors import Quarantine
from schemas.log.records import Cause
from schemas.topics import user_key

CHANNEL = "tartan_due"
"""Postgres channel on which a process notifies the others that an Item became due."""
STALE_RUN_S = 600.0
"""A stale webhook makes an Item due at most this often."""
REPEATS_KEPT = "24 hours"
RUNS_KEPT = "90 days"
PURGED_MAX = 10_000
"""Rows that one purge deletes: about 50 ms; the next one goes on."""


async def register_item(
    connection: asyncpg.Connection,
    vault: Vault,
    *,
    item_id: str,
    tenant: str,
    user_number: int,
    access_token: str,
    institution_id: str | None,
    institution_name: str | None,
    partitions: int,
) -> int:
    """Store an Item's token and make it due; return the generation to wait for.

    Idempotence: the same Item again renews its token and marks it.
    Raises: Quarantine, where it is another user's, or was unlinked.
    """
    partition = partition_of(user_key(user_number), partitions)
    sealed = vault.seal_token(access_token, item_id=item_id)
    async with connection.transaction():
        if not await connection.fetchval(
            _CREDENTIALS, item_id, tenant, user_number, institution_id, institution_name, sealed
        ):
            raise Quarantine(f"item {item_id} is another user's, or was unlinked")
        cause = _json(Cause("link"))
        generation: int = await connection.fetchval(
            _REGISTER, item_id, tenant, user_number, partition, institution_id, Lane.BACKFILL, cause
        )
        await connection.execute(_NOTIFY)
    return generation


async def mark_manual(
    connection: asyncpg.Connection,
    item_id: str,
    *,
    by: str | None = None,
    accounts: bool = False,
    refresh: bool = False,
) -> int | None:
    """Make an Item due on request; return the generation to wait for, None where there is no such Item.

    It ends a wait after failures, not a wait for a rate limit or a bank's outage. `refresh`: have Plaid ask the bank.
    """
    cause = Cause("manual", by=by)
    return await _mark_one(connection, item_id, Lane.MANUAL, cause, accounts=accounts, unlink=False, refresh=refresh)


async def request_unlink(connection: asyncpg.Connection, item_id: str, *, by: str | None = None) -> int | None:
    """Request an Item's removal at Plaid; return the generation to wait for, None where there is no such Item."""
    cause = Cause("unlink", by=by)
    return await _mark_one(connection, item_id, Lane.WEBHOOK, cause, accounts=False, unlink=True, refresh=False)


async def _mark_one(
    connection: asyncpg.Connection,
    item_id: str,
    lane: Lane,
    cause: Cause,
    *,
    accounts: bool,
    unlink: bool,
    refresh: bool,
) -> int | None:
    arguments = (item_id, lane, _json(cause), accounts, unlink, refresh)
    generation: int | None = await connection.fetchval(_MARK_ONE, *arguments)
    if generation is not None:
        await connection.execute(_NOTIFY)
    return generation


async def mark_webhooks(
    connection: asyncpg.Connection,
    marks: Sequence[Mark],
    hints: Sequence[Hint] = (),
    *,
    reader: str = "",
    positions: Mapping[int, Position] | None = None,
) -> int:
    """Mark Items, store hints for their next runs, and move the reader's positions; return the number of marked Items.

    Shape: one mark an Item. Unknown and unlinked Items are skipped.
    """
    positions = positions or {}
    marked: int = await connection.fetchval(
        _MARK_MANY,
        [mark.item_id for mark in marks],
        [_json(mark.cause) for mark in marks],
        [mark.received_at for mark in marks],
        [mark.accounts for mark in marks],
        [mark.unread_only for mark in marks],
        [mark.stale for mark in marks],
        STALE_RUN_S,
        [hint.item_id for hint in hints],
        [hint.offset for hint in hints],
        [hint.partition for hint in hints],
        [hint.code for hint in hints],
        [msgspec.json.encode(hint.fields).decode() for hint in hints],
        [hint.received_at for hint in hints],
        reader,
        list(positions),
        [position.next for position in positions.values()],
        [position.last_checksum for position in positions.values()],
    )
    return marked


async def mark_again(connection: asyncpg.Connection, items: Sequence[str], *, redriven: Sequence[str] = ()) -> None:
    """Mark Items because a record of theirs was skipped, and `redriven` ones because they were redriven."""
    await connection.execute(_MARK_AGAIN, sorted({*items, *redriven}), _json(Cause("retry")), list(redriven))


async def mark_sweep(connection: asyncpg.Connection, items: Sequence[str]) -> int:
    """Mark Items of which a webhook may be lost; return the number of those that are not unlinked."""
    return len(await connection.fetch(_MARK_SWEEP, sorted(items), _json(Cause("sweep")), Lane.SCHEDULE))


async def mark_scheduled(
    connection: asyncpg.Connection, *, interval_s: float, recheck_s: float, spread_s: float, items_max: int
) -> int:
    """Mark Items that have not synced for `interval_s`, spread over `spread_s` by their ids; return their number.

    An Item that waits for its user is marked every `recheck_s`, because the webhook of its repair may be lost. Items
    without a sync for the longest time come first. Where Plaid's quota is short, marks wait in their lane: each Item
    has at most one, and waiting marks cost a claim nothing.
    """
    rows = await connection.fetch(
        _MARK_SCHEDULED, interval_s, recheck_s, spread_s, items_max, _json(Cause("schedule")), Lane.SCHEDULE
    )
    return len(rows)


async def purge(connection: asyncpg.Connection) -> None:
    """Delete repeats after 24 hours and sync runs after 90 days."""
    await connection.execute(_PURGE_REPEATS, PURGED_MAX)
    await connection.execute(_PURGE_RUNS, PURGED_MAX)


def _json(cause: Cause) -> str:
    return msgspec.json.encode(cause).decode()


_NOTIFY = f"NOTIFY {CHANNEL}"

# An Item of another user is not taken over, and an unlinked one does not come back: its id is spent.
_CREDENTIALS = """
    INSERT INTO tartan.credentials AS c (item_id, tenant, user_number, institution_id, institution_name, sealed_token)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (item_id) DO UPDATE
    SET sealed_token = excluded.sealed_token, institution_id = coalesce(excluded.institution_id, c.institution_id),
        institution_name = coalesce(excluded.institution_name, c.institution_name)
    WHERE c.user_number = excluded.user_number AND c.unlinked_at IS NULL
    RETURNING true"""

_REGISTER = """
    INSERT INTO tartan.sync_state AS s (item_id, tenant, user_number, partition, institution_id, lane, cause, due_at,
        created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, tartan.clock(), tartan.clock())
    ON CONFLICT (item_id) DO UPDATE
    SET generation = s.generation + 1, due_at = least(s.due_at, tartan.clock()), cause = excluded.cause,
        accounts_wanted = true,
        lane = CASE WHEN s.due_at IS NULL THEN excluded.lane ELSE least(s.lane, excluded.lane) END
    RETURNING generation"""

# A row that is not due keeps the lane of its last run, so only a due one's lane counts.
# An unlink clears not_before: it calls neither the bank nor /transactions/sync.
_MARK_ONE = """
    UPDATE tartan.sync_state
    SET generation = generation + 1, due_at = least(due_at, tartan.clock()), cause = $3::text::jsonb,
        lane = CASE WHEN due_at IS NULL THEN $2 ELSE least(lane, $2) END,
        accounts_wanted = accounts_wanted OR $4, unlink_requested = unlink_requested OR $5,
        refresh_wanted = refresh_wanted OR $6, not_before = CASE WHEN $5 THEN NULL ELSE not_before END
    WHERE item_id = $1 AND stopped IS DISTINCT FROM 'unlinked'
    RETURNING generation"""

# Rows are locked in the order of their ids: follow_heads marks many at once, too.
_MARK_MANY = """
    WITH marks AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bool[], $5::bool[], $6::bool[])
            AS m (item_id, cause, received_at, accounts, unread_only, stale)
    ), locked AS (
        SELECT item_id FROM tartan.sync_state WHERE item_id = ANY($1) ORDER BY item_id FOR UPDATE
    ), marked AS (
        UPDATE tartan.sync_state s
        SET generation = s.generation + 1, due_at = least(s.due_at, tartan.clock()), lane = 0, cause = m.cause::jsonb,
            accounts_wanted = s.accounts_wanted OR m.accounts,
            last_webhook_at = greatest(s.last_webhook_at, m.received_at)
        FROM marks m JOIN locked USING (item_id)
        WHERE s.item_id = m.item_id AND s.stopped IS DISTINCT FROM 'unlinked'
          AND NOT (m.unread_only AND EXISTS (
              SELECT FROM tartan.heads h WHERE h.item_id = m.item_id AND h.cursor IS NOT NULL))
          AND NOT (m.stale AND coalesce(s.last_webhook_at > tartan.clock() - make_interval(secs => $7), false))
        RETURNING s.item_id
    ), hinted AS (
        INSERT INTO tartan.hints (item_id, webhook_offset, webhook_partition, code, fields, received_at)
        SELECT h.item_id, h.webhook_offset, h.webhook_partition, h.code, h.fields::jsonb, h.received_at
        FROM unnest($8::text[], $9::bigint[], $10::int[], $11::text[], $12::text[], $13::timestamptz[])
            AS h (item_id, webhook_offset, webhook_partition, code, fields, received_at)
        JOIN tartan.sync_state s ON s.item_id = h.item_id AND s.stopped IS DISTINCT FROM 'unlinked'
        ON CONFLICT DO NOTHING
    ), advanced AS (
        UPDATE tartan.positions p SET position = n.position, last_checksum = n.checksum
        FROM unnest($15::int[], $16::bigint[], $17::bytea[]) AS n (partition, position, checksum)
        WHERE p.reader = $14 AND p.partition = n.partition
    )
    SELECT count(*) FROM marked"""

# A redrive ends the wait of a quarantined Item; a skipped record ends no wait.
_MARK_AGAIN = """
    WITH locked AS (SELECT item_id FROM tartan.sync_state WHERE item_id = ANY($1) ORDER BY item_id FOR UPDATE)
    UPDATE tartan.sync_state s
    SET generation = s.generation + 1, due_at = least(s.due_at, tartan.clock()), cause = $2::text::jsonb,
        not_before = CASE WHEN s.item_id = ANY($3) THEN NULL ELSE s.not_before END,
        stopped = CASE WHEN s.stopped = 'quarantined' THEN NULL ELSE s.stopped END
    FROM locked WHERE s.item_id = locked.item_id AND s.stopped IS DISTINCT FROM 'unlinked'"""

_MARK_SWEEP = """
    WITH locked AS (SELECT item_id FROM tartan.sync_state WHERE item_id = ANY($1) ORDER BY item_id FOR UPDATE)
    UPDATE tartan.sync_state s
    SET generation = s.generation + 1, due_at = least(s.due_at, tartan.clock()), cause = $2::text::jsonb,
        lane = CASE WHEN s.due_at IS NULL THEN $3 ELSE least(s.lane, $3) END
    FROM locked WHERE s.item_id = locked.item_id AND s.stopped IS DISTINCT FROM 'unlinked'
    RETURNING s.item_id"""

# hashtext spreads Items evenly and gives one Item the same place in each round.
# Three ranges of the index of idle Items: synced too long ago; never synced; waiting for its user, whose last sync is
# before the attempt that failed with login_required. Items that are stopped for good are read there and skipped.
_MARK_SCHEDULED = """
    WITH idle AS (
        (SELECT item_id, last_synced_at FROM tartan.sync_state
         WHERE due_at IS NULL AND last_synced_at < tartan.clock() - make_interval(secs => $1) AND stopped IS NULL
           AND lease_token IS NULL
         ORDER BY last_synced_at LIMIT $4)
        UNION ALL
        (SELECT item_id, NULL FROM tartan.sync_state
         WHERE due_at IS NULL AND last_synced_at IS NULL AND lease_token IS NULL
           AND (stopped IS NULL AND created_at < tartan.clock() - make_interval(secs => $1)
             OR stopped = 'login_required' AND last_attempt_at < tartan.clock() - make_interval(secs => $2))
         LIMIT $4)
        UNION ALL
        (SELECT item_id, last_synced_at FROM tartan.sync_state
         WHERE due_at IS NULL AND last_synced_at < tartan.clock() - make_interval(secs => $2)
           AND stopped = 'login_required' AND last_attempt_at < tartan.clock() - make_interval(secs => $2)
           AND lease_token IS NULL
         ORDER BY last_synced_at LIMIT $4)
    ), locked AS (
        SELECT s.item_id FROM idle JOIN tartan.sync_state s USING (item_id)
        WHERE s.due_at IS NULL AND s.lease_token IS NULL
        ORDER BY idle.last_synced_at NULLS FIRST LIMIT $4 FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE tartan.sync_state s
    SET generation = s.generation + 1, cause = $5::text::jsonb, lane = $6,
        due_at = tartan.clock() + make_interval(secs => $3 * (hashtext(s.item_id) & 1023) / 1024.0)
    FROM locked WHERE s.item_id = locked.item_id
    RETURNING s.item_id"""

_PURGE_REPEATS = f"""
    DELETE FROM tartan.repeats WHERE key IN (
        SELECT key FROM tartan.repeats WHERE observed_at < tartan.clock() - interval '{REPEATS_KEPT}' LIMIT $1)"""

_PURGE_RUNS = f"""
    DELETE FROM tartan.sync_runs WHERE run IN (
        SELECT run FROM tartan.sync_runs ORDER BY run LIMIT $1)
      AND started_at < tartan.clock() - interval '{RUNS_KEPT}'"""
