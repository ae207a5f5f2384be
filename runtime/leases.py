"""Who works on what is due: claiming Items, renewing the claim, giving them back.

A lease is a random token with an end in time. Whoever holds the row's token may write the row; whoever lost it
finds so at the next renewal. What a late worker still appends is skipped by the gate, so a lease only saves work.
"""

from collections.abc import Sequence

import asyncpg
import msgspec

from runtime.dues import Claimed, KnownHead, KnownHint, Released
from schemas.records import Cause

FOLLOWER = "follow_heads"
"""Reader of `positions` that keeps `heads`."""
HINTS_MAX = 100
"""Hints that one pass deals with; an Item that has more is asked about again."""
REMARKED_WAIT_S_MAX = 60.0
"""Longest wait after a failure where a webhook landed during the pass: it says that the bank is alive."""
NO_OFFSET = -1
"""`first_offset` of a parking by streams: there is no record."""


async def claim(
    connection: asyncpg.Connection, *, slots: int, lease_s: float, holder: str, oldest_first: bool = False
) -> list[Claimed]:
    """Lease Items that are due, at most `slots`: by lane, or those that wait longest. `holder`: an instance id."""
    rows = await connection.fetch(_CLAIM_OLDEST if oldest_first else _CLAIM, slots, lease_s, HINTS_MAX, holder)
    return [_claimed(row) for row in rows]


async def renew(connection: asyncpg.Connection, claimed: Claimed, *, lease_s: float) -> bool:
    """Prolong a lease; False where it was lost."""
    return bool(await connection.fetchval(_RENEW, claimed.item_id, claimed.lease, lease_s))


async def release(connection: asyncpg.Connection, claimed: Claimed, result: Released) -> bool:
    """Give an Item back with what became of it; False where the lease was lost, and then only the attempt is kept."""
    error = None if result.error is None else msgspec.json.encode(result.error).decode()
    held = await connection.fetchval(
        _RELEASE, claimed.item_id, claimed.lease, claimed.generation, result.done, result.due_in_s,
        result.not_before_s, result.wait_offset, result.accounts_read, result.synced, result.attempts,
        result.not_ready, result.stopped, error, 0.0 if result.done else REMARKED_WAIT_S_MAX, result.hints_until,
        result.duration_s, claimed.cause.kind, result.pages, result.added, result.modified, result.removed,
        result.outcome, result.bank_asked, result.bank_updated_at, result.refreshed,
    )  # fmt: skip
    return bool(held)


async def let_go(connection: asyncpg.Connection, claimed: Claimed, *, wait_offset: int) -> bool:
    """Give an Item back untouched, not to be claimed before follow_heads has read this offset."""
    return bool(await connection.fetchval(_LET_GO, claimed.item_id, claimed.lease, wait_offset))


async def expire(connection: asyncpg.Connection, claimed: Claimed) -> None:
    """End a lease as if time had: the next claimer first waits for whatever this one may have appended."""
    await connection.execute(_EXPIRE, claimed.item_id, claimed.lease)


async def expire_all(connection: asyncpg.Connection, *, holder: str) -> int:
    """End the leases of a process that is dead, so that its Items need not wait for their ends. Gives how many."""
    rows = await connection.fetch(_EXPIRE_ALL, holder)
    return len(rows)


async def finish_unlink(connection: asyncpg.Connection, claimed: Claimed) -> None:
    """Delete the token and the schedule of an Item whose unlink was accepted."""
    async with connection.transaction():
        await connection.execute(_FORGET_CREDENTIAL, claimed.item_id)
        await connection.execute(_STOP_UNLINKED, claimed.item_id)
        await connection.execute(_DROP_HINTS, claimed.item_id)


async def park(connection: asyncpg.Connection, claimed: Claimed, *, reason: str) -> None:
    """Set an Item aside until it is redriven."""
    await connection.execute(_PARK, claimed.item_id, NO_OFFSET, claimed.partition, reason)


async def gone_lately(connection: asyncpg.Connection) -> tuple[int, int]:
    """How many Items Plaid called gone within the last hour, and how many Items there are."""
    [row] = await connection.fetch(_GONE)
    return row["gone"], row["items"]


def known_head(row: asyncpg.Record) -> KnownHead:
    """An Item's head from a row of `heads`."""
    prints = msgspec.json.decode(row["fingerprints"], type=dict[str, str])
    return KnownHead(
        row["head"],
        row["head_offset"],
        row["head_at"],
        row["unlinked"],
        row["cursor"],
        row["state"],
        row["code"],
        row["history_status"],
        {account: bytes.fromhex(value) for account, value in prints.items()},
    )


def _claimed(row: asyncpg.Record) -> Claimed:
    hints: Sequence[KnownHint] = msgspec.json.decode(row["hints"], type=tuple[KnownHint, ...])
    return Claimed(
        item_id=row["item_id"],
        tenant=row["tenant"],
        user=row["user_number"],
        partition=row["partition"],
        institution_id=row["institution_id"],
        institution_name=row["institution_name"],
        sealed_token=row["sealed_token"],
        lease=row["lease_token"],
        expired=row["expired"],
        generation=row["generation"],
        lane=row["lane"],
        cause=msgspec.json.decode(row["cause"], type=Cause),
        unlink_requested=row["unlink_requested"],
        accounts_wanted=row["accounts_wanted"],
        accounts_at=row["accounts_at"],
        refresh_wanted=row["refresh_wanted"],
        attempts=row["attempts"],
        not_ready=row["not_ready"],
        head=known_head(row) if row["head"] is not None else None,
        hints=tuple(hints),
    )


# One statement, so one snapshot: the follower's position and the head that it wrote with it are read together, and
# a row that another claimer or a release changed meanwhile is checked again after it was locked.
# The commit need not reach the disk: a claim that a crash of Postgres forgets is made again.
# A parked Item is passed over; only its unlink is not held up, because that ends what the user pays for.
_CLAIM_BY = f"""
    WITH picked AS (
        SELECT s.item_id, s.lease_token IS NOT NULL AS expired
        FROM tartan.sync_state s
        LEFT JOIN tartan.positions p ON p.reader = '{FOLLOWER}' AND p.partition = s.partition
        WHERE s.due_at <= tartan.clock() AND (s.lease_until IS NULL OR s.lease_until <= tartan.clock())
          AND (s.not_before IS NULL OR s.not_before <= tartan.clock())
          AND (s.wait_offset IS NULL OR s.wait_offset < coalesce(p.position, 0))
          AND (s.unlink_requested OR NOT EXISTS (
              SELECT FROM tartan.parkings k WHERE k.item_id = s.item_id AND k.redrive_offset IS NULL))
        ORDER BY %s LIMIT $1
        FOR UPDATE OF s SKIP LOCKED
    ), claimed AS (
        UPDATE tartan.sync_state s
        SET lease_token = uuid_send(gen_random_uuid()), lease_until = tartan.clock() + make_interval(secs => $2),
            lease_holder = $4, last_attempt_at = tartan.clock()
        FROM picked WHERE s.item_id = picked.item_id
        RETURNING s.item_id, s.tenant, s.user_number, s.partition, s.institution_id, s.lease_token, s.generation,
            s.lane, s.due_at, s.cause, s.unlink_requested, s.accounts_wanted, s.accounts_at, s.refresh_wanted,
            s.attempts, s.not_ready,
            picked.expired
    )
    SELECT c.*, set_config('synchronous_commit', 'off', true), k.institution_name, k.sealed_token,
        h.head, h.head_offset, h.head_at, h.unlinked, h.cursor, h.state,
        h.code, h.history_status, h.fingerprints,
        (SELECT coalesce(jsonb_agg(jsonb_build_object('offset', w.webhook_offset, 'code', w.code, 'fields', w.fields)
                                   ORDER BY w.webhook_offset), '[]')
         FROM (SELECT * FROM tartan.hints WHERE hints.item_id = c.item_id ORDER BY webhook_offset LIMIT $3) w) AS hints
    FROM claimed c JOIN tartan.credentials k USING (item_id) LEFT JOIN tartan.heads h USING (item_id)
    ORDER BY %s"""
_CLAIM = _CLAIM_BY % ("s.lane, s.due_at", "c.lane, c.due_at")
_CLAIM_OLDEST = _CLAIM_BY % ("s.due_at", "c.due_at")

_RENEW = """
    UPDATE tartan.sync_state SET lease_until = tartan.clock() + make_interval(secs => $3)
    WHERE item_id = $1 AND lease_token = $2 AND lease_until > tartan.clock() RETURNING true"""

# A mark that landed during the pass left a higher generation: the Item stays due.
# The commit need not reach the disk: a release that a crash of Postgres forgets is a lease that ends by itself.
_RELEASE = """
    WITH held AS (
        UPDATE tartan.sync_state
        SET lease_token = NULL, lease_until = NULL,
            done_generation = CASE WHEN $4 THEN greatest(done_generation, $3) ELSE done_generation END,
            due_at = tartan.clock() + make_interval(
                secs => CASE WHEN generation > $3 THEN least(coalesce($5::float8, 0), $14) ELSE $5::float8 END),
            not_before = tartan.clock() + make_interval(secs => $6::float8),
            wait_offset = coalesce($7::bigint, wait_offset),
            accounts_at = CASE WHEN $8 THEN tartan.clock() ELSE accounts_at END,
            accounts_wanted = accounts_wanted AND (generation > $3 OR NOT $8),
            last_synced_at = CASE WHEN $9 THEN tartan.clock() ELSE last_synced_at END,
            bank_seen_at = CASE WHEN $23 THEN tartan.clock() ELSE bank_seen_at END,
            bank_updated_at = coalesce($24::timestamptz, bank_updated_at),
            refresh_wanted = refresh_wanted AND (generation > $3 OR NOT $25),
            refreshed_at = CASE WHEN $25 THEN tartan.clock() ELSE refreshed_at END,
            attempts = $10, not_ready = $11, stopped = $12, last_error = $13::text::jsonb
        WHERE item_id = $1 AND lease_token = $2 AND lease_until > tartan.clock()
        RETURNING item_id
    ), dealt_with AS (
        DELETE FROM tartan.hints h USING held WHERE h.item_id = held.item_id AND h.webhook_offset <= $15::bigint
    ), attempted AS (
        INSERT INTO tartan.sync_attempts (item_id, started_at, duration_s, cause, pages, added, modified, removed,
            outcome, error, generation, changeset_offset)
        VALUES ($1, tartan.clock() - make_interval(secs => $16), $16, $17, $18, $19, $20, $21, $22, $13::text::jsonb,
            $3, $7::bigint)
    )
    SELECT EXISTS (SELECT FROM held) AS held, set_config('synchronous_commit', 'off', true)"""

_DROP_HINTS = "DELETE FROM tartan.hints WHERE item_id = $1"

_LET_GO = """
    UPDATE tartan.sync_state SET lease_token = NULL, lease_until = NULL, wait_offset = greatest(wait_offset, $3)
    WHERE item_id = $1 AND lease_token = $2 AND lease_until > tartan.clock() RETURNING true"""

_EXPIRE = "UPDATE tartan.sync_state SET lease_until = tartan.clock() WHERE item_id = $1 AND lease_token = $2"

_EXPIRE_ALL = """
    UPDATE tartan.sync_state SET lease_until = tartan.clock()
    WHERE lease_holder = $1 AND lease_token IS NOT NULL AND lease_until > tartan.clock() RETURNING item_id"""

_FORGET_CREDENTIAL = """
    UPDATE tartan.credentials SET sealed_token = NULL, unlinked_at = coalesce(unlinked_at, tartan.clock())
    WHERE item_id = $1"""

_STOP_UNLINKED = """
    UPDATE tartan.sync_state
    SET stopped = 'unlinked', due_at = NULL, lease_token = NULL, lease_until = NULL, done_generation = generation,
        attempts = 0, last_error = NULL
    WHERE item_id = $1"""

_PARK = """
    INSERT INTO tartan.parkings (item_id, first_offset, partition, reason, reader) VALUES ($1, $2, $3, $4, 'streams')
    ON CONFLICT (item_id, first_offset) DO UPDATE
    SET reason = excluded.reason, redrive_offset = NULL, parked_at = clock_timestamp()"""

_GONE = """
    SELECT count(*) FILTER (WHERE stopped = 'gone' AND last_attempt_at > tartan.clock() - interval '1 hour') AS gone,
        count(*) AS items
    FROM tartan.sync_state WHERE stopped IS DISTINCT FROM 'unlinked'"""
