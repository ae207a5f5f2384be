"""Breakers: while a bank is down, one of its Items tries and the others wait.

`breakers` has a row for each bank that failed. `open_until` null: closed, with `failures` in a row counted. In the
future: open; `changed_at` is when that was set, so a time of at most PROBE_S between them means that one Item tries.

All Items of an open bank have a `not_before`, PROBING_S later than `open_until`: in this time one after another tries,
before all of them would. A crash half-way repairs itself: an Item that is held although its bank is up goes on at its
`not_before`; one that is not held although its bank is down fails, and its failure holds back the others.

Locks: the breaker's row, then its incident; Items of sync_state in transactions of their own, in the order of their
ids or skipping locked ones, so that no claim, mark or release waits in a circle.
"""

from datetime import datetime

import asyncpg

from runtime.incidents import incidents
from runtime.plaid.models import OUTAGE_CODES

OPEN_S, OPEN_S_MAX = 5 * 60.0, 6 * 3600.0
"""Time for which the first outage opens a breaker, doubling to six hours: "a few hours or until the next day"
(PLAID.md 1.9)."""
PROBE_S = 30.0
"""Time for the run of the Item that tries, a few requests, before another one may: its worker may be dead."""
PROBING_S = 15 * 60.0
"""Time for which Items wait beyond the outage for one that tries: 30 tries of PROBE_S. Then all of them try."""
SPREAD_S = 60.0
"""A bank's Items begin spread over this time, because it has just come back."""
ITEMS_AT_ONCE_MAX = 1_000
"""Items that one statement holds or releases, about 20 ms: a webhook for one of them waits so long."""
PROBES_MAX = 100
"""Banks of one call of `probe`; the next call is a second later."""
RACES_MAX = 3


def wait_s(trips: int) -> float:
    """Return the time for which a breaker opens at this trip in a row."""
    return min(OPEN_S * 2.0 ** min(max(trips, 1) - 1, 30), OPEN_S_MAX)


async def open_s(connection: asyncpg.Connection, institution_id: str) -> float | None:
    """Return the seconds for which a bank's breaker stays open, 0 where it is closed; None where no failure counts."""
    left: float | None = await connection.fetchval(_LEFT, institution_id)
    return left


async def failed(connection: asyncpg.Connection, institution_id: str, code: str, failures_max: int) -> bool:
    """Count an outage answer of a bank, and open its breaker at `failures_max` in a row; return whether it is open.

    Only the Item that tries opens an open breaker again, for longer: answers to requests that were under way when it
    opened add nothing. Each failure holds those of the bank's Items that are not held yet.
    """
    async with connection.transaction():
        row = await connection.fetchrow(_FAILED, institution_id, code)
        assert row is not None
        opens = row["tries"] if row["open"] else row["failures"] >= failures_max
        if opens:
            await connection.execute(_OPEN, institution_id, wait_s(row["trips"] + 1))
            await incidents.report(connection, incidents.INSTITUTION_DOWN, institution_id, code)
    if opens or row["open"]:
        await _hold(connection, institution_id)
    return bool(opens or row["open"])


async def answered(connection: asyncpg.Connection, institution_id: str) -> bool:
    """Close the breaker of a bank that answered, and release its Items; return whether Items were waiting.

    The Items first: after a crash between, the breaker is open and the next Item that tries releases the others.
    """
    for _ in range(RACES_MAX):
        row = await connection.fetchrow(_FAILING, institution_id)
        if row is None:
            return False
        # A failure before a breaker opened may be an Item's own, so such Items wait on.
        if row["trips"]:
            await _release(connection, institution_id)
        if await _close(connection, institution_id, row["changed_at"]):
            return bool(row["trips"])
    return False  # it fails and answers at once: the next answer closes it


async def probe(connection: asyncpg.Connection) -> int:
    """Make one Item try at each bank whose time is over, one that is due or waits for the bank; return their number.

    The bank's time is moved on in the same statement: other workers skip it, and if the Item's worker dies, another
    Item tries after PROBE_S. The least recently tried goes first, so that an Item's own failure, as an empty bucket or
    a login, keeps the breaker open for one turn only.
    """
    return len(await connection.fetch(_PROBE, PROBE_S, PROBES_MAX, list(OUTAGE_CODES)))


async def forget(connection: asyncpg.Connection) -> int:
    """Delete breakers of banks whose Items are all stopped or unlinked, so that none would try; return the number."""
    async with connection.transaction():
        rows = await connection.fetch(_FORGET)
        for row in rows:
            await incidents.close(connection, incidents.INSTITUTION_DOWN, row["institution_id"])
    return len(rows)


async def _hold(connection: asyncpg.Connection, institution_id: str) -> None:
    """Set not_before of the bank's Items. Locked ones are being tried or marked, and held by the next failure."""
    last = ""
    while True:
        rows = await connection.fetch(_HOLD, institution_id, PROBING_S, ITEMS_AT_ONCE_MAX, last)
        if len(rows) < ITEMS_AT_ONCE_MAX:
            return
        last = max(row["item_id"] for row in rows)


async def _release(connection: asyncpg.Connection, institution_id: str) -> None:
    """Release the bank's Items, locked ones last: nothing else would end their wait."""
    for statement in (_RELEASE_FREE, _RELEASE_REST):
        last = ""
        while True:
            rows = await connection.fetch(
                statement, institution_id, SPREAD_S, list(OUTAGE_CODES), ITEMS_AT_ONCE_MAX, last
            )
            if len(rows) < ITEMS_AT_ONCE_MAX:
                break
            last = max(row["item_id"] for row in rows)


async def _close(connection: asyncpg.Connection, institution_id: str, changed_at: datetime) -> bool:
    """Close a breaker, unless it was opened meanwhile."""
    async with connection.transaction():
        closed = await connection.fetchval(_CLOSE, institution_id, changed_at)
        if closed is not None:
            await incidents.close(connection, incidents.INSTITUTION_DOWN, institution_id)
    return closed is not None


_LEFT = """
    SELECT coalesce(greatest(extract(epoch FROM open_until - tartan.clock()), 0), 0)::float8 FROM tartan.breakers
    WHERE institution_id = $1 AND (failures > 0 OR open_until IS NOT NULL)"""

# `open`: opened and not closed since. `tries`: its time is over, or one Item tries, and this is its failure.
_FAILED = f"""
    INSERT INTO tartan.breakers AS b (institution_id, failures, last_code, changed_at)
    VALUES ($1, 1, $2, tartan.clock())
    ON CONFLICT (institution_id) DO UPDATE SET failures = b.failures + 1, last_code = excluded.last_code
    RETURNING failures, trips, open_until IS NOT NULL AS open,
        coalesce(open_until <= greatest(tartan.clock(), changed_at + interval '{PROBE_S} s'), false) AS tries"""

_OPEN = """
    UPDATE tartan.breakers SET trips = trips + 1, open_until = tartan.clock() + make_interval(secs => $2),
        changed_at = tartan.clock()
    WHERE institution_id = $1"""

_HOLD = """
    WITH held AS (
        SELECT s.item_id, b.open_until + make_interval(secs => $2) AS until
        FROM tartan.breakers b JOIN tartan.sync_state s USING (institution_id)
        WHERE b.institution_id = $1 AND b.open_until IS NOT NULL AND s.item_id > $4
          AND s.stopped IS DISTINCT FROM 'unlinked' AND NOT s.unlink_requested
          AND (s.not_before IS NULL OR s.not_before < b.open_until + make_interval(secs => $2))
        ORDER BY s.item_id LIMIT $3 FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE tartan.sync_state s SET not_before = held.until FROM held WHERE s.item_id = held.item_id
    RETURNING s.item_id"""

_FAILING = """
    SELECT trips, changed_at FROM tartan.breakers
    WHERE institution_id = $1 AND (failures > 0 OR open_until IS NOT NULL)"""

# An Item that waits for Plaid's rate limit waits on. hashtext gives each Item the same place within the minute.
_RELEASE = """
    WITH waiting AS (
        SELECT item_id, tartan.clock() + make_interval(secs => $2 * (hashtext(item_id) & 1023) / 1024.0) AS at
        FROM tartan.sync_state
        WHERE institution_id = $1 AND item_id > $5 AND stopped IS DISTINCT FROM 'unlinked'
          AND last_error->>'detail' IS DISTINCT FROM 'RATE_LIMIT_EXCEEDED'
          AND (not_before > tartan.clock() + make_interval(secs => $2)
            OR due_at > tartan.clock() + make_interval(secs => $2) AND last_error->>'code' = ANY($3::text[]))
        ORDER BY item_id LIMIT $4 FOR UPDATE {}
    )
    UPDATE tartan.sync_state s
    SET not_before = CASE WHEN s.due_at IS NULL THEN NULL ELSE waiting.at END,
        due_at = CASE WHEN s.last_error->>'code' = ANY($3::text[]) THEN least(s.due_at, waiting.at) ELSE s.due_at END
    FROM waiting WHERE s.item_id = waiting.item_id RETURNING s.item_id"""
_RELEASE_FREE = _RELEASE.format("SKIP LOCKED")
_RELEASE_REST = _RELEASE.format("")

_CLOSE = """
    UPDATE tartan.breakers SET failures = 0, trips = 0, open_until = NULL, changed_at = tartan.clock()
    WHERE institution_id = $1 AND changed_at = $2 RETURNING institution_id"""

# A quarantined Item is skipped, as by the claim; one that is not due waits an hour or more for its bank.
_PROBE = """
    WITH over AS (
        SELECT institution_id FROM tartan.breakers WHERE open_until <= tartan.clock()
        ORDER BY open_until LIMIT $2 FOR UPDATE SKIP LOCKED
    ), moved AS (
        UPDATE tartan.breakers b
        SET open_until = tartan.clock() + make_interval(secs => $1), changed_at = tartan.clock()
        FROM over WHERE b.institution_id = over.institution_id RETURNING b.institution_id
    ), chosen AS (
        SELECT one.item_id FROM moved CROSS JOIN LATERAL (
            SELECT s.item_id FROM tartan.sync_state s
            WHERE s.institution_id = moved.institution_id AND s.lease_token IS NULL
              AND s.stopped IS DISTINCT FROM 'unlinked'
              AND (s.due_at <= tartan.clock() OR s.last_error->>'code' = ANY($3::text[]) AND s.due_at IS NOT NULL)
              AND (s.unlink_requested OR NOT EXISTS (
                  SELECT FROM tartan.quarantines k WHERE k.item_id = s.item_id AND k.redrive_offset IS NULL))
            ORDER BY s.last_attempt_at NULLS FIRST, s.item_id LIMIT 1 FOR UPDATE SKIP LOCKED) one
    )
    UPDATE tartan.sync_state s SET not_before = NULL, due_at = least(s.due_at, tartan.clock())
    FROM chosen WHERE s.item_id = chosen.item_id RETURNING s.item_id"""

# While an Item is due it is probed every PROBE_S, which keeps open_until at most so far ahead.
_FORGET = f"""
    DELETE FROM tartan.breakers b WHERE b.open_until <= tartan.clock() + interval '{PROBE_S} s' AND NOT EXISTS (
        SELECT FROM tartan.sync_state s WHERE s.institution_id = b.institution_id
          AND s.stopped IS DISTINCT FROM 'unlinked' AND (s.stopped IS NULL OR s.due_at IS NOT NULL))
    RETURNING b.institution_id"""
