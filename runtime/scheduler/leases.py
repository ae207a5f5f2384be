"""Leases of due Items: claim, renew, release.

A lease is a random token with an end in time. Only the worker that has the row's token may write the row. Records that
a late worker still appends are skipped by the gate, so a lease only saves work.
"""

from collections.abc import Sequence

import asyncpg
import msgspec

from runtime.plaid_limits import SYNC, Limit
from runtime.scheduler.quotas import CLIENT, claim_pace, item_pace
from runtime.scheduler.types import NOBODY_AHEAD, Claimed, Claims, FairQueueState, KnownHead, KnownHint, Released
from schemas.log.records import Cause

FOLLOWER = "follow_heads"
"""Reader of `positions` that keeps `heads`."""
HINTS_MAX = 100
"""Hints that one sync run reads; an Item that has more is due again."""
REMARKED_WAIT_S_MAX = 60.0
"""Longest wait after a failure where a webhook arrived during the run: the bank is up."""
AGE_S = 15.0
"""A lane rises by one each time its oldest ready Item has waited so long: a backfill waits 45 s until it is equal to
webhooks, which is short for a history that takes minutes, and long for a webhook."""
SLACK = 4
"""Candidates a slot: so many workers can claim at once before all candidates of one are taken by others."""
QUARANTINED_LOOK_S = 60.0
"""Interval at which a due Item that is quarantined is read again: its redrive waits no longer than that."""
QUARANTINED_BY = "streams"
"""`reader` of the quarantines by streams; projections end their own."""
NO_OFFSET = -1
"""`first_offset` of a quarantine by streams, which has no record."""
QUARANTINE = f"""
    INSERT INTO tartan.quarantines AS k (item_id, first_offset, partition, reason, reader, quarantined_at)
    SELECT item_id, {NO_OFFSET}, partition, $2, '{QUARANTINED_BY}', tartan.clock() FROM held
    ON CONFLICT (item_id, first_offset) DO UPDATE
    SET reason = excluded.reason, redrive_offset = NULL, quarantined_at = excluded.quarantined_at"""
"""Statement that quarantines the Items of `held` with the reason $2; an earlier quarantine is opened again."""


async def claim(
    connection: asyncpg.Connection,
    *,
    slots: int,
    lease_s: float,
    holder: str,
    fair_queue: FairQueueState = NOBODY_AHEAD,
    limit: Limit | None = None,
) -> Claims:
    """Lease at most `slots` ready Items, by lane, age and the tenants' shares.

    `holder`: an instance id. `limit`: the rate limit of /transactions/sync, if any: each Item but one to be unlinked
    costs a token of its own bucket and one of the client's, which pay for the run's first page.
    """
    arguments = [slots, lease_s, HINTS_MAX, holder, *(list(column) for column in fair_queue)]
    if limit is None:
        rows = await connection.fetch(_CLAIM, *arguments)
        return Claims(_claims(rows), more_in_s=0.0 if rows[0]["held"] else None)
    client, item = claim_pace(limit), item_pace(limit)
    for _ in range(2):
        rows = await connection.fetch(_CLAIM_METERED, *arguments, *client, *item)
        if rows[0]["available"] is not None:
            break
        # A missing row cannot be locked: two workers would both take all the tokens of a full bucket.
        await connection.execute(_FIRST_BUCKET)
    claims = _claims(rows)
    spent = sum(not claimed.unlink_requested for claimed in claims)
    left = (rows[0]["available"] or 0.0) - spent
    if left < 1:
        return Claims(claims, more_in_s=(1 - left) * client.interval_s)
    return Claims(claims, more_in_s=0.0 if rows[0]["held"] else None)


async def renew(connection: asyncpg.Connection, claimed: Claimed, *, lease_s: float) -> bool:
    """Prolong a lease; False where it was lost."""
    return bool(await connection.fetchval(_RENEW, claimed.item_id, claimed.lease, lease_s))


async def release(connection: asyncpg.Connection, claimed: Claimed, result: Released) -> bool:
    """Release an Item with the outcome of its run; False where the lease was lost: then only the run is recorded."""
    error = None if result.error is None else msgspec.json.encode(result.error).decode()
    is_held = await connection.fetchval(
        _RELEASE,
        claimed.item_id,
        claimed.lease,
        claimed.generation,
        result.done,
        result.due_in_s,
        result.not_before_s,
        result.wait_offset,
        result.accounts_read,
        result.synced,
        result.attempts,
        result.not_ready,
        result.stopped,
        error,
        0.0 if result.done else REMARKED_WAIT_S_MAX,
        result.hints_until,
        result.duration_s,
        claimed.cause.kind,
        result.pages,
        result.added,
        result.modified,
        result.removed,
        result.outcome,
        result.bank_asked,
        result.bank_updated_at,
        result.refreshed,
    )
    return bool(is_held)


async def release_untouched(connection: asyncpg.Connection, claimed: Claimed, *, wait_offset: int) -> bool:
    """Release an Item without a run; it is not claimed before follow_heads has read this offset."""
    return bool(await connection.fetchval(_RELEASE_UNTOUCHED, claimed.item_id, claimed.lease, wait_offset))


async def expire(connection: asyncpg.Connection, claimed: Claimed) -> None:
    """End a lease as its time would: the next claim first waits for records that this one may have appended."""
    await connection.execute(_EXPIRE, claimed.item_id, claimed.lease)


async def expire_all(connection: asyncpg.Connection, *, holder: str) -> int:
    """End the leases of a dead process, so that its Items do not wait for their ends; return their number."""
    return len(await connection.fetch(_EXPIRE_ALL, holder))


async def finish_unlink(connection: asyncpg.Connection, claimed: Claimed) -> None:
    """Delete the token and the schedule of an Item whose unlink was accepted."""
    async with connection.transaction():
        await connection.execute(_FORGET_CREDENTIAL, claimed.item_id)
        await connection.execute(_STOP_UNLINKED, claimed.item_id)
        await connection.execute(_DROP_HINTS, claimed.item_id)


async def quarantine(connection: asyncpg.Connection, claimed: Claimed, *, reason: str) -> bool:
    """Quarantine an Item until it is redriven; False where the lease was lost, because another worker may succeed."""
    return bool(await connection.fetchval(_QUARANTINE, claimed.item_id, reason, claimed.lease))


async def count_gone(connection: asyncpg.Connection) -> tuple[int, int]:
    """Count the Items that Plaid called gone within the last hour, and all Items."""
    [row] = await connection.fetch(_GONE)
    return row["gone"], row["items"]


def known_head(row: asyncpg.Record) -> KnownHead:
    """Build an Item's head from a row of `heads`."""
    fingerprints = msgspec.json.decode(row["fingerprints"], type=dict[str, str])
    return KnownHead(
        row["head"],
        row["head_offset"],
        row["head_at"],
        row["unlinked"],
        row["cursor"],
        row["state"],
        row["code"],
        row["history_status"],
        {account: bytes.fromhex(value) for account, value in fingerprints.items()},
    )


def _claims(rows: Sequence[asyncpg.Record]) -> list[Claimed]:
    # The first row exists without a claim too: it has the quota.
    return [_claimed(row) for row in rows if row["item_id"] is not None]


def _claimed(row: asyncpg.Record) -> Claimed:
    other = {
        "user": row["user_number"],
        "lease": row["lease_token"],
        "cause": msgspec.json.decode(row["cause"], type=Cause),
        "head": None if row["head"] is None else known_head(row),
        "hints": msgspec.json.decode(row["hints"], type=tuple[KnownHint, ...]),
    }
    return Claimed(**{name: other[name] if name in other else row[name] for name in Claimed.__struct_fields__})


# One statement, so one snapshot: the follower's position and the head that it wrote are read together, and a row that
# another claim or a release changed meanwhile is checked again after it was locked.
# The commit need not reach the disk: a claim that a crash of Postgres loses is made again.
#
# Reads: two index entries for each tenant and lane with due Items (pairs, fronts), and the first few ready rows of
# those whose turn is near (looked), however long their queues are. Rows that are leased or wait for the follower are
# read and skipped: at most as many as all workers have slots, and as were released since the follower stopped. All
# others that cannot be claimed leave the ready ones: a limit and a bank that is down are in not_before already; a
# quarantined Item and one whose own bucket is empty get a not_before here (held), once.
#
# Order: a lane goes before the next one until the oldest Item of that one has waited AGE_S; then lanes take turns by
# their weights, within a lane tenants by theirs, within a tenant Items by age. So webhooks go first however long the
# schedule's queue is, and no flood of them takes all slots.
_CLAIM_BY = f"""
    WITH RECURSIVE moment AS MATERIALIZED (SELECT tartan.clock() AS now), pairs AS (
        (SELECT tenant, lane FROM tartan.sync_state WHERE ready_at IS NOT NULL ORDER BY tenant, lane LIMIT 1)
        UNION ALL
        SELECT n.tenant, n.lane FROM pairs CROSS JOIN LATERAL (
            SELECT s.tenant, s.lane FROM tartan.sync_state s
            WHERE s.ready_at IS NOT NULL AND (s.tenant, s.lane) > (pairs.tenant, pairs.lane)
            ORDER BY s.tenant, s.lane LIMIT 1) n
    ), %(client)s fronts AS MATERIALIZED (
        SELECT pairs.tenant, pairs.lane, coalesce(a.ahead, 0) AS ahead,
            count(*) OVER (PARTITION BY lane)::int AS tenants,
            min(l.ready_at) OVER (PARTITION BY lane) AS oldest,
            row_number() OVER (PARTITION BY lane ORDER BY coalesce(a.ahead, 0), l.ready_at) AS place
        FROM pairs CROSS JOIN LATERAL (
            SELECT s.ready_at FROM tartan.sync_state s
            LEFT JOIN tartan.positions f ON f.reader = '{FOLLOWER}' AND f.partition = s.partition
            WHERE s.tenant = pairs.tenant AND s.lane = pairs.lane AND %(claimable)s
            ORDER BY s.ready_at LIMIT 1) l
        LEFT JOIN unnest($5::text[], $6::int[], $7::float8[]) AS a (tenant, lane, ahead) USING (tenant, lane)
    ), looked AS MATERIALIZED (
        SELECT fronts.tenant, fronts.lane, fronts.ahead, fronts.oldest, l.* FROM fronts CROSS JOIN LATERAL (
            SELECT s.item_id, s.ready_at,
                CASE WHEN s.unlink_requested THEN NULL
                     WHEN EXISTS (
                         SELECT FROM tartan.quarantines k WHERE k.item_id = s.item_id AND k.redrive_offset IS NULL)
                     THEN (SELECT now FROM moment) + interval '{QUARANTINED_LOOK_S} s'
                     %(emptied)s END AS held_until
            FROM tartan.sync_state s
            LEFT JOIN tartan.positions f ON f.reader = '{FOLLOWER}' AND f.partition = s.partition
            WHERE s.tenant = fronts.tenant AND s.lane = fronts.lane AND %(claimable)s
            ORDER BY s.ready_at LIMIT greatest($1, $1 * {SLACK} / fronts.tenants)) l
        WHERE fronts.place <= $1 * {SLACK}
    ), turns AS (
        SELECT l.item_id, l.lane, l.ready_at,
            greatest(0, l.lane - floor(extract(epoch FROM (SELECT now FROM moment) - l.oldest) / {AGE_S})) AS effective,
            l.ahead + (row_number() OVER (PARTITION BY l.tenant, l.lane ORDER BY l.ready_at, l.item_id) - 1)
                / coalesce(w.weight, 1) AS turn
        FROM looked l LEFT JOIN unnest($8::text[], $9::float8[]) AS w (tenant, weight) USING (tenant)
        WHERE l.held_until IS NULL
    ), placed AS (
        SELECT item_id, row_number() OVER (ORDER BY effective, lane_turn, lane, in_lane) AS place FROM (
            SELECT item_id, lane, effective, in_lane,
                ($10::float8[])[lane + 1] + (in_lane - 1) / ($11::float8[])[lane + 1] AS lane_turn
            FROM (SELECT *, row_number() OVER (PARTITION BY lane ORDER BY turn, ready_at, item_id) AS in_lane
                  FROM turns) AS ranked) AS taking
        ORDER BY place LIMIT $1 * {SLACK}
    ), held AS (
        UPDATE tartan.sync_state s SET not_before = h.held_until
        FROM (SELECT s.item_id, l.held_until FROM looked l JOIN tartan.sync_state s USING (item_id)
              LEFT JOIN tartan.positions f ON f.reader = '{FOLLOWER}' AND f.partition = s.partition
              WHERE l.held_until IS NOT NULL AND NOT s.unlink_requested AND %(claimable)s
              FOR UPDATE OF s SKIP LOCKED) h
        WHERE s.item_id = h.item_id RETURNING s.item_id
    ), picked AS (
        SELECT s.item_id, s.lease_token IS NOT NULL AS expired, placed.place
        FROM placed JOIN tartan.sync_state s USING (item_id)
        LEFT JOIN tartan.positions f ON f.reader = '{FOLLOWER}' AND f.partition = s.partition
        WHERE %(claimable)s %(payable)s
        ORDER BY placed.place LIMIT %(slots)s
        FOR UPDATE OF s SKIP LOCKED
    ), claimed AS (
        UPDATE tartan.sync_state s
        SET lease_token = uuid_send(gen_random_uuid()), lease_until = tartan.clock() + make_interval(secs => $2),
            lease_holder = $4, last_attempt_at = tartan.clock()
        FROM picked WHERE s.item_id = picked.item_id
        RETURNING s.item_id, s.tenant, s.user_number, s.partition, s.institution_id, s.lease_token, s.generation,
            s.lane, s.cause, s.unlink_requested, s.accounts_wanted, s.accounts_at, s.refresh_wanted,
            s.history_incomplete, s.attempts,
            s.not_ready, s.last_error->>'code' AS last_code, picked.expired, picked.place
    ) %(paid)s
    SELECT q.available, q.held, c.*, k.institution_name, k.sealed_token,
        coalesce(b.failures > 0 OR b.open_until IS NOT NULL, false) AS bank_failing,
        h.head, h.head_offset, h.head_at, h.unlinked, h.cursor, h.state, h.code, h.history_status, h.fingerprints,
        (SELECT coalesce(jsonb_agg(jsonb_build_object('offset', w.webhook_offset, 'code', w.code, 'fields', w.fields)
                                   ORDER BY w.webhook_offset), '[]')
         FROM (SELECT * FROM tartan.hints WHERE hints.item_id = c.item_id ORDER BY webhook_offset LIMIT $3) w) AS hints
    FROM (SELECT %(available)s AS available, (SELECT count(*) FROM held) AS held,
              set_config('synchronous_commit', 'off', true)) q
    LEFT JOIN (claimed c LEFT JOIN tartan.credentials k USING (item_id)) ON true
    LEFT JOIN tartan.heads h USING (item_id)
    LEFT JOIN tartan.breakers b ON b.institution_id = c.institution_id
    ORDER BY c.place"""
# A quarantined Item is claimed for its unlink only, because that ends the billing.
_CLAIMABLE = """s.ready_at <= (SELECT now FROM moment)
              AND (s.lease_until IS NULL OR s.lease_until <= (SELECT now FROM moment))
              AND (s.wait_offset IS NULL OR s.wait_offset < coalesce(f.position, 0))"""
_CLAIM = _CLAIM_BY % {
    "client": "",
    "emptied": "",
    "claimable": _CLAIMABLE,
    "payable": "",
    "slots": "$1::int",
    "paid": "",
    "available": "NULL::float8",
}
# $12 to $15: pace of the client and of the Item. The client's bucket is locked before an Item's, so a claim that waits
# for it counts the tokens of the one before. A millionth of a token makes up for times in whole microseconds.
# Where the client has no token left, only Items to be unlinked are claimed: those call /item/remove.
_CLAIM_METERED = _CLAIM_BY % {
    "client": f"""client AS MATERIALIZED (
        SELECT ($13 - extract(epoch FROM greatest(tat, tartan.clock()) - tartan.clock())::float8) / $12 + 1.000001
            AS available
        FROM tartan.rate_limit_buckets WHERE endpoint = '{SYNC}' AND item_id = '{CLIENT}' FOR UPDATE
    ),""",
    "emptied": f"""ELSE (SELECT b.tat - make_interval(secs => $15) FROM tartan.rate_limit_buckets b
                           WHERE b.endpoint = '{SYNC}' AND b.item_id = s.item_id
                             AND b.tat > (SELECT now FROM moment) + make_interval(secs => $15))""",
    "claimable": _CLAIMABLE,
    "payable": "AND (s.unlink_requested OR (SELECT available FROM client) >= 1)",
    "slots": """(SELECT coalesce(
            (SELECT CASE WHEN available >= 1 THEN least($1, floor(available)::int) ELSE $1 END FROM client), 0))""",
    "paid": f""", paid AS (
        INSERT INTO tartan.rate_limit_buckets AS b (endpoint, item_id, tat)
        SELECT '{SYNC}', item_id, tartan.clock() + make_interval(secs => $14) FROM claimed WHERE NOT unlink_requested
        ON CONFLICT (endpoint, item_id) DO UPDATE
        SET tat = greatest(b.tat, tartan.clock()) + make_interval(secs => $14)
    ), spent AS (
        UPDATE tartan.rate_limit_buckets b
        SET tat = greatest(b.tat, tartan.clock()) + make_interval(secs => $12 * c.items)
        FROM (SELECT count(*) AS items FROM claimed WHERE NOT unlink_requested) c
        WHERE b.endpoint = '{SYNC}' AND b.item_id = '{CLIENT}' AND c.items > 0
    )""",
    "available": "(SELECT available FROM client)",
}

_FIRST_BUCKET = f"""
    INSERT INTO tartan.rate_limit_buckets (endpoint, item_id, tat) VALUES ('{SYNC}', '{CLIENT}', tartan.clock())
    ON CONFLICT DO NOTHING"""

_RENEW = """
    UPDATE tartan.sync_state SET lease_until = tartan.clock() + make_interval(secs => $3)
    WHERE item_id = $1 AND lease_token = $2 AND lease_until > tartan.clock() RETURNING true"""

# A mark that arrived during the run left a higher generation, so the Item stays due. A not_before that was set during
# the run, as by the outage of its bank, stays: the claim had none in the future. An unlink that was requested meanwhile
# waits for none of that.
# The commit need not reach the disk: after a crash of Postgres that loses a release, the lease ends by itself.
_RELEASE = """
    WITH held AS (
        UPDATE tartan.sync_state
        SET lease_token = NULL, lease_until = NULL,
            done_generation = CASE WHEN $4 THEN greatest(done_generation, $3) ELSE done_generation END,
            due_at = tartan.clock() + make_interval(
                secs => CASE WHEN generation > $3 THEN least(coalesce($5::float8, 0), $14) ELSE $5::float8 END),
            not_before = CASE WHEN NOT (unlink_requested AND generation > $3) THEN
                greatest(CASE WHEN not_before > tartan.clock() THEN not_before END,
                    tartan.clock() + make_interval(secs => $6::float8)) END,
            wait_offset = coalesce($7::bigint, wait_offset),
            accounts_at = CASE WHEN $8 THEN tartan.clock() ELSE accounts_at END,
            accounts_wanted = accounts_wanted AND (generation > $3 OR NOT $8),
            last_synced_at = CASE WHEN $9 THEN tartan.clock() ELSE last_synced_at END,
            bank_observed_at = CASE WHEN $23 THEN tartan.clock() ELSE bank_observed_at END,
            bank_updated_at = coalesce($24::timestamptz, bank_updated_at),
            refresh_wanted = refresh_wanted AND (generation > $3 OR NOT ($25 OR $4)),
            refreshed_at = CASE WHEN $25 THEN tartan.clock() ELSE refreshed_at END,
            attempts = $10, not_ready = $11, stopped = $12, last_error = $13::text::jsonb
        WHERE item_id = $1 AND lease_token = $2 AND lease_until > tartan.clock()
        RETURNING item_id
    ), dealt_with AS (
        DELETE FROM tartan.hints h USING held WHERE h.item_id = held.item_id AND h.webhook_offset <= $15::bigint
    ), attempted AS (
        INSERT INTO tartan.sync_runs (item_id, started_at, duration_s, cause, pages, added, modified, removed,
            outcome, error, generation, changeset_offset)
        VALUES ($1, tartan.clock() - make_interval(secs => $16), $16, $17, $18, $19, $20, $21, $22, $13::text::jsonb,
            $3, $7::bigint)
    )
    SELECT EXISTS (SELECT FROM held) AS held, set_config('synchronous_commit', 'off', true)"""

_DROP_HINTS = "DELETE FROM tartan.hints WHERE item_id = $1"

_RELEASE_UNTOUCHED = """
    UPDATE tartan.sync_state SET lease_token = NULL, lease_until = NULL, wait_offset = greatest(wait_offset, $3)
    WHERE item_id = $1 AND lease_token = $2 AND lease_until > tartan.clock() RETURNING true"""

_EXPIRE = "UPDATE tartan.sync_state SET lease_until = tartan.clock() WHERE item_id = $1 AND lease_token = $2"

_EXPIRE_ALL = """
    UPDATE tartan.sync_state SET lease_until = tartan.clock()
    WHERE lease_holder = $1 AND lease_token IS NOT NULL AND lease_until > tartan.clock() RETURNING item_id"""

_FORGET_CREDENTIAL = """
    UPDATE tartan.credentials SET sealed_token = NULL, unlinked_at = coalesce(unlinked_at, tartan.clock())
    WHERE item_id = $1"""

# swept_at: an unlinked Item is at the far end of the sweep's index, or each turn would read it first.
_STOP_UNLINKED = """
    UPDATE tartan.sync_state
    SET stopped = 'unlinked', due_at = NULL, lease_token = NULL, lease_until = NULL, done_generation = generation,
        attempts = 0, last_error = NULL, swept_at = 'infinity'
    WHERE item_id = $1"""

# The row stays locked until the commit, so that no claim comes between.
_QUARANTINE = f"""
    WITH held AS (
        SELECT item_id, partition FROM tartan.sync_state
        WHERE item_id = $1 AND lease_token = $3 AND lease_until > tartan.clock() FOR UPDATE
    )
    {QUARANTINE} RETURNING true"""

_GONE = """
    SELECT count(*) FILTER (WHERE stopped IN ('gone', 'refused')
            AND last_attempt_at > tartan.clock() - interval '1 hour')
        + (SELECT count(*) FROM tartan.sync_runs WHERE outcome = 'unlinked'
            AND error->>'code' = 'INVALID_ACCESS_TOKEN' AND started_at > tartan.clock() - interval '1 hour') AS gone,
        count(*) AS items
    FROM tartan.sync_state WHERE stopped IS DISTINCT FROM 'unlinked'"""
