"""Plaid's quotas, counted by us: no answer of Plaid's says how much is left (PLAID.md 1.8).

A bucket is one moment in Postgres, shared by all workers: when it would be full again (GCRA). A request is let
through while that moment lies at most the bucket's burst ahead, and moves it on by one interval.

Plaid counts a request when it arrives, we count it when its token is taken. Requests that arrive within one of
Plaid's minutes had their tokens taken within a minute and the longest way, so that no minute of Plaid's holds more
than its limit where burst + (60 s + DELAY_S_MAX) / interval <= limit.

Locks: of one request's buckets the client's first, then the Item's, as the claim takes them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import asyncpg

from runtime.incidents import incidents
from schemas.errors import Halt, Retry

MINUTE_S = 60.0
DELAY_S_MAX = 5.0
"""From a token to its request's arrival at Plaid: a commit, a thread, a connection, tens of milliseconds of each; a
worker or a network that stands for a moment makes it seconds. It costs 8 % of the refill (5 s of 65). A request that
is later still is one of a few, and a 429 does no harm but the wait."""
SYNC, REFRESH, RECURRING = "transactions/sync", "transactions/refresh", "transactions/recurring/get"
ACCOUNTS, BALANCE, ITEM, REMOVE = "accounts/get", "accounts/balance/get", "item/get", "item/remove"
PAGES = "transactions/sync of passes under way"
"""Name of the bucket that the pages behind the first ones share."""
PAGES_SHARE = 0.8
"""Of the client's quota of /transactions/sync, for passes under way. A claim waits until half of the burst is there,
and a hundred histories that are read at once would never leave it: a fifth of the quota is the claims', so webhooks go
on, and where no history is read it is all theirs."""
CLIENT = ""
"""`item_id` of the client's own bucket."""
BUCKETS = 2
"""Of one request: the Item's and the client's."""
RACES_MAX = 3
"""A bucket is made once; the second attempt finds it, unless a purge takes it away."""
CLIENT_STEP_S = MINUTE_S / 10
QUIET_S = 15 * MINUTE_S
"""How long no request may exceed a limit before the incident is over."""
PURGED_MAX = 10_000
"""Rows that one purge deletes, about 50 ms; the next one goes on."""

_OF_BANK = frozenset({"INSTITUTION_RATE_LIMIT"})
"""The bank's own limit: the client's quota has nothing to do with it."""


class Limit(NamedTuple):
    """Requests a minute that Plaid allows for one Item and for the client."""

    item: int
    client: int


class Pace(NamedTuple):
    """How a bucket is used. Units: seconds; a request costs `interval_s`, the bucket lends `burst_s` ahead."""

    interval_s: float
    burst_s: float


PLANS: Mapping[str, Mapping[str, Limit]] = {
    "production": {
        SYNC: Limit(50, 2_500),
        REFRESH: Limit(2, 100),
        RECURRING: Limit(20, 1_000),
        ACCOUNTS: Limit(15, 15_000),
        BALANCE: Limit(5, 1_200),
        ITEM: Limit(15, 5_000),
        REMOVE: Limit(30, 2_000),
    },
    "sandbox": {
        SYNC: Limit(50, 1_000),
        REFRESH: Limit(2, 100),
        RECURRING: Limit(20, 1_000),
        ACCOUNTS: Limit(100, 5_000),
        BALANCE: Limit(25, 100),
        ITEM: Limit(40, 5_000),
        REMOVE: Limit(100, 500),
    },
    "off": {},
}
"""Source: PLAID.md 1.8, of 2026-03-07."""


def limits(text: str, *, environment: str) -> dict[str, Limit]:
    """Read TARTAN_PLAID_LIMITS: a plan's name and changes to it, "production,transactions/sync=100/5000".

    An empty text is the plan of the environment.
    Raises: Halt, naming the part that is wrong.
    """
    found: dict[str, Limit] = {}
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or "=" in parts[0]:
        parts.insert(0, environment)
    if parts[0] not in PLANS:
        raise Halt(f"TARTAN_PLAID_LIMITS: {parts[0]!r} is no plan; plans are {', '.join(PLANS)}")
    found.update(PLANS[parts[0]])
    for part in parts[1:]:
        endpoint, _, numbers = part.partition("=")
        item, slash, client = numbers.partition("/")
        if not (slash and item.isdecimal() and client.isdecimal() and int(item) and int(client)):
            raise Halt(f"TARTAN_PLAID_LIMITS: {part!r} is not endpoint=item/client, both a minute and above 0")
        found[endpoint.strip("/ ")] = Limit(int(item), int(client))
    return found


def item_pace(limit: Limit) -> Pace:
    """How an Item's bucket is used: half at once, since a history is many pages in a row and then none."""
    return _pace(limit.item, burst=limit.item // 2)


def client_pace(limit: Limit) -> Pace:
    """How the client's bucket is used: a tenth at once, so that a burst leaves room for webhooks of the same minute."""
    return _pace(limit.client, burst=limit.client // 10)


def claim_pace(limit: Limit) -> Pace:
    """How claims use the client's bucket: of what it lends at once, half is kept for passes under way.

    A claim takes what there is at the moment it comes in, so where the quota is short a pass that needs a second page
    would never find a token, give up after its longest wait, and begin again at its first page.
    """
    pace = client_pace(limit)
    return pace._replace(burst_s=pace.burst_s / 2)


def pages_pace(limit: Limit) -> Pace:
    """How pages behind the first ones use the client's quota: as many at once as it lends, and in the long run a share.

    Claims give up to them what they hold at once (`claim_pace`), they give up to claims what comes anew.
    """
    interval_s, burst_s = client_pace(limit)
    return Pace(interval_s / PAGES_SHARE, burst_s / PAGES_SHARE)


def client_share(limit: Limit, share: float, *, burst_s: float) -> Pace:
    """How a part of the client's quota is used by work that can wait: evenly, no more at once than in `burst_s`."""
    return Pace((MINUTE_S + DELAY_S_MAX) / (limit.client * share), burst_s)


class TokenResult(NamedTuple):
    """What a bucket answers: how long to wait (0: the token is taken), and when it would be full again afterwards."""

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
    """Take a token of the Item's bucket and one of the client's, or none. Gives 0, or the seconds until both have one.

    Raises: Retry, where others made the same buckets at this very moment, again and again.
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
    await connection.execute(_BUCKET, PAGES)  # by itself: it need not be made again where the rest is taken back
    try:
        async with connection.transaction():
            if not await connection.fetchval(_TAKE_SOME, PAGES, 1, *pace):
                return pace.interval_s
            await _taken(connection, item_id, limits)
    except _NoRoom as error:
        return error.wait_s
    return 0.0


async def take_some(connection: asyncpg.Connection, name: str, wanted: int, pace: Pace) -> int:
    """Take up to so many tokens of a bucket that all workers share. Gives how many there were."""
    await connection.execute(_BUCKET, name)
    found: int | None = await connection.fetchval(_TAKE_SOME, name, wanted, *pace)
    return found or 0


async def record_exceeded(
    connection: asyncpg.Connection, endpoint: str, item_id: str, error_code: str, limits: Mapping[str, Limit]
) -> None:
    """Plaid answered 429 although we had a token: empty the buckets that it may speak of, and tell operators.

    No code says whether the Item's quota or the client's is meant, and both may be counted by others with the same
    keys. The Item lets nothing through for a minute, after which Plaid's window is another one. The client's bucket
    is moved by CLIENT_STEP_S only: one Item's limit must not stop all others; where it is the client's that is
    exceeded, ten of these answers make up the minute.
    """
    limit = limits.get(endpoint)
    async with connection.transaction():
        if limit is not None:
            if error_code not in _OF_BANK:
                ahead_s_max = MINUTE_S + client_pace(limit).burst_s
                await connection.execute(_MOVE, endpoint, CLIENT_STEP_S, ahead_s_max)
            await connection.execute(_CLOSE, endpoint, item_id, MINUTE_S + item_pace(limit).burst_s)
        await incidents.report(connection, incidents.RATE_LIMITED, endpoint, error_code)


async def purge(connection: asyncpg.Connection) -> int:
    """Forget buckets that are full again, and end incidents of limits that have held since. Gives how many went."""
    await connection.execute(_OVER, incidents.RATE_LIMITED, QUIET_S)
    rows = await connection.fetch(_PURGE, PURGED_MAX)
    return len(rows)


class _Raced(Exception):
    """Another transaction made a bucket at the same moment; what was taken of the other one goes back."""


class _NoRoom(Exception):
    """Another bucket has nothing; the token of this one goes back."""

    def __init__(self, wait_s: float) -> None:
        super().__init__()
        self.wait_s = wait_s


async def _taken(connection: asyncpg.Connection, item_id: str, limits: Mapping[str, Limit]) -> None:
    wait_s = await take(connection, SYNC, item_id, limits)
    if wait_s:
        raise _NoRoom(wait_s)


async def _take(connection: asyncpg.Connection, endpoint: str, item_id: str, limit: Limit) -> float:
    async with connection.transaction():
        row = await connection.fetchrow(_TAKE, endpoint, item_id, *item_pace(limit), *client_pace(limit))
        assert row is not None
        if not row["wait_s"] and row["taken"] != BUCKETS:
            raise _Raced
    return float(row["wait_s"])


def _pace(limit: int, *, burst: int) -> Pace:
    burst = min(max(burst, 1), limit)
    # A limit of 1 is one at once and the next more than a minute later, so no minute holds two all the same.
    interval_s = (MINUTE_S + DELAY_S_MAX) / max(limit - burst, 1)
    return Pace(interval_s, interval_s * (burst - 1))


# One statement for both, so both give or none. A bucket that is not there is full. FOR UPDATE gives each row as it is
# once the lock was granted, while the clock stands at the transaction's begin: who waited for a lock counts as
# earlier than it is, and so waits a little longer, never less.
# A bucket that another transaction makes meanwhile cannot be locked before: DO UPDATE looks at it again, and `taken`
# tells whether both were.
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

_BUCKET = """
    INSERT INTO tartan.rate_limit_buckets (endpoint, item_id, tat) VALUES ($1, '', tartan.clock()) ON CONFLICT DO NOTHING"""

# As many as the burst still lends, and one more (GCRA).
_TAKE_SOME = """
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

_CLOSE = """
    INSERT INTO tartan.rate_limit_buckets AS b (endpoint, item_id, tat)
    VALUES ($1, $2, tartan.clock() + make_interval(secs => $3))
    ON CONFLICT (endpoint, item_id) DO UPDATE SET tat = greatest(b.tat, excluded.tat)"""

# Answers to requests under way come after one another, so they add up; to a minute at most.
_MOVE = """
    INSERT INTO tartan.rate_limit_buckets AS b (endpoint, item_id, tat)
    VALUES ($1, '', tartan.clock() + make_interval(secs => $2))
    ON CONFLICT (endpoint, item_id) DO UPDATE
    SET tat = greatest(b.tat, least(greatest(b.tat, tartan.clock()) + make_interval(secs => $2),
                                            tartan.clock() + make_interval(secs => $3)))"""

_OVER = """
    UPDATE tartan.incidents SET closed_at = tartan.clock()
    WHERE kind = $1 AND closed_at IS NULL AND last_at < tartan.clock() - make_interval(secs => $2)"""

# A bucket that is full again is as good as none; one that a request holds now is passed over.
_PURGE = """
    DELETE FROM tartan.rate_limit_buckets b USING (
        SELECT endpoint, item_id FROM tartan.rate_limit_buckets WHERE tat < tartan.clock() LIMIT $1 FOR UPDATE SKIP LOCKED
    ) p WHERE b.endpoint = p.endpoint AND b.item_id = p.item_id RETURNING b.item_id"""
