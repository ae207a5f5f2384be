"""Plaid's rate limits, counted in rate-limit buckets: no answer of Plaid's contains what is left (PLAID.md 1.8).

A bucket is one time in Postgres, shared by all workers: its theoretical arrival time (`tat`, GCRA), when it would be
full again. A request passes while `tat` lies at most the bucket's burst ahead, and moves it on by one interval.

Plaid counts a request when it arrives, this code when its token is taken. Requests that arrive within one of Plaid's
minutes had their tokens taken within a minute and the longest delay, so no minute of Plaid's holds more than its limit
where burst + (60 s + DELAY_S_MAX) / interval <= limit.

Locks: of one request's buckets the client's first, then the Item's, as the claim takes them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import asyncpg

from runtime.incidents import incidents
from runtime.plaid_limits import SYNC, Limit
from schemas.errors import Retry

MINUTE_S = 60.0
DELAY_S_MAX = 5.0
"""From a token to its request's arrival at Plaid: a commit, a thread and a connection take tens of milliseconds each, a
worker or a network that pauses makes it seconds. It costs 8 % of the refill (5 s of 65). Few requests are later still,
and a 429 costs a wait only."""
PAGES = "transactions/sync of passes under way"
"""Name of the bucket that all pages behind a run's first one share."""
PAGES_SHARE = 0.8
"""Share of the client's quota of /transactions/sync for runs under way. A claim waits until half of the burst is there,
which a hundred histories that are read at once would never leave: a fifth of the quota is for claims, so webhooks go
on, and where no history is read claims have all of it."""
CLIENT = ""
"""`item_id` of the client's own bucket."""
BUCKETS = 2
"""Buckets of one request: the Item's and the client's."""
RACES_MAX = 3
"""A bucket is created once; the second attempt has it, unless a purge deletes it."""
CLIENT_STEP_S = MINUTE_S / 10
QUIET_S = 15 * MINUTE_S
"""Time without an exceeded limit after which the incident is closed."""
PURGED_MAX = 10_000
"""Rows that one purge deletes, about 50 ms; the next one goes on."""

_OF_BANK = frozenset({"INSTITUTION_RATE_LIMIT"})
"""Error codes of the bank's own limit, which the client's quota has no part in."""


class Pace(NamedTuple):
    """The pace of a bucket. Units: seconds; a request costs `interval_s`, the bucket lends `burst_s` ahead."""

    interval_s: float
    burst_s: float


def item_pace(limit: Limit) -> Pace:
    """Return the pace of an Item's bucket: half at once, because a history is many pages in a row and then none."""
    return _pace(limit.item, burst=limit.item // 2)


def client_pace(limit: Limit) -> Pace:
    """Return the pace of the client's bucket: a tenth at once, so a burst leaves room for webhooks of that minute."""
    return _pace(limit.client, burst=limit.client // 10)


def claim_pace(limit: Limit) -> Pace:
    """Return the pace at which claims use the client's bucket: half of its burst is reserved for runs under way.

    A claim takes what is there when a token arrives. Where the quota is short, a run that needs a second page would
    never get one, give up after its longest wait, and begin again at its first page.
    """
    pace = client_pace(limit)
    return pace._replace(burst_s=pace.burst_s / 2)


def pages_pace(limit: Limit) -> Pace:
    """Return the pace of pages behind the first ones: the client's whole burst, and PAGES_SHARE of its rate.

    Claims leave them half of the burst (`claim_pace`); they leave claims the rest of the rate.
    """
    interval_s, burst_s = client_pace(limit)
    return Pace(interval_s / PAGES_SHARE, burst_s / PAGES_SHARE)


def client_share(limit: Limit, share: float, *, burst_s: float) -> Pace:
    """Return the pace of work that can wait, on a share of the client's quota: at most `burst_s` ahead."""
    return Pace((MINUTE_S + DELAY_S_MAX) / (limit.client * share), burst_s)


class TokenResult(NamedTuple):
    """The wait for a token (0: it is taken), and the bucket's theoretical arrival time afterwards."""

    wait_s: float
    tat_s: float


def take_token(tat_s: float, now_s: float, pace: Pace) -> TokenResult:
    """Take a token from one bucket: the arithmetic of the statements below, for simulations and proofs.

    Units: seconds of one clock.
    """
    tat_s = max(tat_s, now_s)
    wait_s = tat_s - pace.burst_s - now_s
    return TokenResult(wait_s, tat_s) if wait_s > 0 else TokenResult(0.0, tat_s + pace.interval_s)


async def take(connection: asyncpg.Connection, endpoint: str, item_id: str, limits: Mapping[str, Limit]) -> float:
    """Take a token of the Item's bucket and one of the client's, or none; return 0, or seconds until both have one.

    Raises: Retry, where others created and purged the same buckets RACES_MAX times meanwhile.
    """
    assert item_id != CLIENT, "a request is about an Item"
    limit = limits.get(endpoint)
    if limit is None:
        return 0.0
    for _ in range(RACES_MAX):
        try:
            return await _take(connection, endpoint, item_id, limit)
        except _Raced:
            continue
    raise Retry(f"the buckets of {endpoint} are being made and purged", wait_s=1.0)


async def take_page(connection: asyncpg.Connection, item_id: str, limits: Mapping[str, Limit]) -> float:
    """Take the tokens of a page of /transactions/sync that no claim has paid for, or none, as `take` does.

    Locks: the pages' bucket before the others; claims do not touch it.
    Raises: Retry, as `take`.
    """
    limit = limits.get(SYNC)
    if limit is None:
        return 0.0
    pace = pages_pace(limit)
    # In a transaction of its own: the bucket stays where the tokens are given back.
    await connection.execute(_CREATE_BUCKET, PAGES)
    try:
        async with connection.transaction():
            if not await connection.fetchval(_TAKE_UP_TO, PAGES, 1, *pace):
                return pace.interval_s
            await _take_or_raise(connection, item_id, limits)
    except _NoToken as error:
        return error.wait_s
    return 0.0


async def take_some(connection: asyncpg.Connection, name: str, count: int, pace: Pace) -> int:
    """Take up to `count` tokens of a bucket that all workers share; return the number taken."""
    await connection.execute(_CREATE_BUCKET, name)
    tokens: int | None = await connection.fetchval(_TAKE_UP_TO, name, count, *pace)
    return tokens or 0


async def record_exceeded(
    connection: asyncpg.Connection, endpoint: str, item_id: str, error_code: str, limits: Mapping[str, Limit]
) -> None:
    """Empty the buckets that a 429 in spite of a token may be about, and report an incident.

    No code names the Item's quota or the client's, and both may be used by others with the same keys. The Item's bucket
    gives nothing for a minute, after which Plaid's window is another one. The client's bucket is moved by CLIENT_STEP_S
    only, because one Item's limit must not stop all others; where the client's limit is exceeded, ten of these answers
    add up to a minute.
    """
    limit = limits.get(endpoint)
    async with connection.transaction():
        if limit is not None:
            if error_code not in _OF_BANK:
                ahead_s_max = MINUTE_S + client_pace(limit).burst_s
                await connection.execute(_ADVANCE, endpoint, CLIENT_STEP_S, ahead_s_max)
            await connection.execute(_EMPTY, endpoint, item_id, MINUTE_S + item_pace(limit).burst_s)
        await incidents.report(connection, incidents.RATE_LIMITED, endpoint, error_code)


async def purge(connection: asyncpg.Connection) -> int:
    """Delete full buckets, and close incidents of limits that were not exceeded for QUIET_S; return deleted buckets."""
    await connection.execute(_CLOSE_INCIDENTS, incidents.RATE_LIMITED, QUIET_S)
    return len(await connection.fetch(_PURGE, PURGED_MAX))


class _Raced(Exception):
    """Rolls a take back: another transaction created one of the buckets at the same moment."""


class _NoToken(Exception):
    """Rolls a take back: another bucket has no token."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self.wait_s = wait_s


async def _take_or_raise(connection: asyncpg.Connection, item_id: str, limits: Mapping[str, Limit]) -> None:
    wait_s = await take(connection, SYNC, item_id, limits)
    if wait_s:
        raise _NoToken(wait_s)


async def _take(connection: asyncpg.Connection, endpoint: str, item_id: str, limit: Limit) -> float:
    async with connection.transaction():
        row = await connection.fetchrow(_TAKE, endpoint, item_id, *item_pace(limit), *client_pace(limit))
        assert row is not None
        if not row["wait_s"] and row["taken"] != BUCKETS:
            raise _Raced
    return float(row["wait_s"])


def _pace(limit: int, *, burst: int) -> Pace:
    burst = min(max(burst, 1), limit)
    # A limit of 1 is one at once and the next more than a minute later, so no minute has two.
    interval_s = (MINUTE_S + DELAY_S_MAX) / max(limit - burst, 1)
    return Pace(interval_s, interval_s * (burst - 1))


# One statement for both buckets, so both give a token or none. A missing bucket is full. FOR UPDATE returns each row as
# of the grant of the lock, while the clock is the begin of the transaction: a request that waited for a lock computes
# with an earlier time and so waits longer, never less.
# A bucket that another transaction creates meanwhile cannot be locked before: DO UPDATE checks it again, and `taken`
# counts the buckets that gave one.
_TAKE = """
    WITH wanted (item_id, step, burst) AS (
        VALUES ($2::text, make_interval(secs => $3), make_interval(secs => $4)),
               ('', make_interval(secs => $5), make_interval(secs => $6))
    ), locked AS MATERIALIZED (
        SELECT item_id, tat FROM tartan.rate_limit_buckets
        WHERE endpoint = $1 AND item_id IN ($2, '') ORDER BY item_id FOR UPDATE
    ), found AS (
        SELECT w.*, greatest(l.tat, tartan.clock()) AS tat FROM wanted w LEFT JOIN locked l USING (item_id)
    ), waiting AS (
        SELECT greatest(0, max(extract(epoch FROM tat - burst - tartan.clock())))::float8 AS wait_s FROM found
    ), taken AS (
        INSERT INTO tartan.rate_limit_buckets AS b (endpoint, item_id, tat)
        SELECT $1, item_id, tat + step FROM found, waiting WHERE wait_s = 0 ORDER BY item_id
        ON CONFLICT (endpoint, item_id) DO UPDATE
        SET tat = greatest(b.tat, tartan.clock())
            + (SELECT w.step FROM wanted w WHERE w.item_id = b.item_id)
        WHERE b.tat <= tartan.clock() + (SELECT w.burst FROM wanted w WHERE w.item_id = b.item_id)
        RETURNING item_id
    )
    SELECT wait_s, (SELECT count(*) FROM taken) AS taken FROM waiting"""

_CREATE_BUCKET = """
    INSERT INTO tartan.rate_limit_buckets (endpoint, item_id, tat) VALUES ($1, '', tartan.clock())
    ON CONFLICT DO NOTHING"""

# As many tokens as the burst still lends, and one more (GCRA).
_TAKE_UP_TO = """
    WITH locked AS (
        SELECT greatest(tat, tartan.clock()) AS tat FROM tartan.rate_limit_buckets
        WHERE endpoint = $1 AND item_id = '' FOR UPDATE
    ), given AS (
        SELECT tat, least($2, greatest(0,
            floor(extract(epoch FROM tartan.clock() - tat)::float8 / $3 + $4::float8 / $3) + 1))::int AS tokens
        FROM locked
    )
    UPDATE tartan.rate_limit_buckets b SET tat = given.tat + make_interval(secs => given.tokens * $3::float8)
    FROM given WHERE b.endpoint = $1 AND b.item_id = '' RETURNING given.tokens"""

_EMPTY = """
    INSERT INTO tartan.rate_limit_buckets AS b (endpoint, item_id, tat)
    VALUES ($1, $2, tartan.clock() + make_interval(secs => $3))
    ON CONFLICT (endpoint, item_id) DO UPDATE SET tat = greatest(b.tat, excluded.tat)"""

# Answers to requests under way arrive one after another, so the steps add up, to a minute at most.
_ADVANCE = """
    INSERT INTO tartan.rate_limit_buckets AS b (endpoint, item_id, tat)
    VALUES ($1, '', tartan.clock() + make_interval(secs => $2))
    ON CONFLICT (endpoint, item_id) DO UPDATE
    SET tat = greatest(b.tat, least(greatest(b.tat, tartan.clock()) + make_interval(secs => $2),
                                            tartan.clock() + make_interval(secs => $3)))"""

_CLOSE_INCIDENTS = """
    UPDATE tartan.incidents SET closed_at = tartan.clock()
    WHERE kind = $1 AND closed_at IS NULL AND last_at < tartan.clock() - make_interval(secs => $2)"""

# A full bucket equals a missing one; one that a request has locked is skipped.
_PURGE = """
    DELETE FROM tartan.rate_limit_buckets b USING (
        SELECT endpoint, item_id FROM tartan.rate_limit_buckets WHERE tat < tartan.clock()
        LIMIT $1 FOR UPDATE SKIP LOCKED
    ) p WHERE b.endpoint = p.endpoint AND b.item_id = p.item_id RETURNING b.item_id"""
