"""Plaid's quotas on a real Postgres, with its clock in our hands."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from runtime.incidents import incidents
from runtime.plaid_limits import ACCOUNTS, ITEM, SYNC, Limit
from runtime.postgres.clock import set_clock
from runtime.scheduler import quotas

NOW = datetime(2026, 1, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LIMITS = {SYNC: Limit(4, 12)}


@pytest.fixture
async def connections(database: str) -> AsyncIterator[list[asyncpg.Connection]]:
    """Workers, each with its connection, on one clock."""
    opened = [await asyncpg.connect(database) for _ in range(6)]
    for connection in opened:
        await set_clock(connection, NOW)
    yield opened
    for connection in opened:
        await connection.close()


def most_in_a_minute(times: list[datetime]) -> int:
    """The most that any sliding minute holds."""
    return max((sum(at <= other < at + MINUTE for other in times) for at in times), default=0)


async def move_clock(connections: list[asyncpg.Connection], seconds: float) -> None:
    """Set all workers' clocks."""
    for connection in connections:
        await set_clock(connection, NOW + timedelta(seconds=seconds))


async def test_two_workers_at_once_never_pass_the_limits(connections: list[asyncpg.Connection]) -> None:
    workers = connections[:2]
    taken: list[tuple[str, datetime]] = []

    for step in range(150):
        await move_clock(workers, step * 1.3)
        items = [f"item-{(step + place) % 5}" for place in range(2)]
        waits = await asyncio.gather(
            *(quotas.take(worker, SYNC, item, LIMITS) for worker, item in zip(workers, items, strict=True))
        )
        taken += [
            (item, NOW + timedelta(seconds=step * 1.3)) for item, wait_s in zip(items, waits, strict=True) if not wait_s
        ]

    assert 9 <= most_in_a_minute([at for _, at in taken]) <= LIMITS[SYNC].client
    for item in {item for item, _ in taken}:
        assert most_in_a_minute([at for name, at in taken if name == item]) <= LIMITS[SYNC].item


async def test_postgres_counts_as_the_proven_arithmetic_does(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    pace = quotas.item_pace(LIMITS[SYNC])
    of_client = quotas.client_pace(Limit(4, 1_000))
    full = [0.0, 0.0]

    for step in range(60):
        now_s = step * 7.0
        await move_clock([worker], now_s)
        spent = [quotas.take_token(full[0], now_s, pace), quotas.take_token(full[1], now_s, of_client)]
        wait_s = await quotas.take(worker, SYNC, "item", {SYNC: Limit(4, 1_000)})
        assert wait_s == pytest.approx(max(one.wait_s for one in spent), abs=1e-3)
        if not wait_s:
            full = [one.tat_s for one in spent]


async def test_buckets_that_many_make_at_once_give_one_token_each(connections: list[asyncpg.Connection]) -> None:
    waits = await asyncio.gather(
        *(quotas.take(worker, SYNC, f"item-{place}", {SYNC: Limit(1, 1)}) for place, worker in enumerate(connections))
    )

    assert sorted(wait_s == 0 for wait_s in waits) == [False] * 5 + [True]
    [[made]] = await connections[0].fetch("SELECT count(*) FROM tartan.rate_limit_buckets WHERE item_id <> ''")
    assert made == 1  # who got no token of the client's has not spent one of its Item's


async def test_a_request_takes_both_tokens_or_none(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    limits = {SYNC: Limit(2, 100)}
    await quotas.take(worker, SYNC, "item", limits)
    client = "SELECT tat FROM tartan.rate_limit_buckets WHERE endpoint = 'transactions/sync' AND item_id = ''"
    before = await worker.fetchval(client)

    wait_s = await quotas.take(worker, SYNC, "item", limits)

    assert wait_s == pytest.approx(quotas.MINUTE_S + quotas.DELAY_S_MAX)
    assert await worker.fetchval(client) == before


async def test_after_the_wait_that_was_named_there_is_a_token(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    while not (wait_s := await quotas.take(worker, SYNC, "item", LIMITS)):
        pass

    await move_clock([worker], wait_s + 0.001)

    assert await quotas.take(worker, SYNC, "item", LIMITS) == 0


async def test_an_endpoint_without_a_limit_costs_nothing(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections

    waits = [await quotas.take(worker, ACCOUNTS, "item", LIMITS) for _ in range(50)]

    assert not any(waits)
    assert await worker.fetchval("SELECT count(*) FROM tartan.rate_limit_buckets") == 0


async def test_a_429_stops_the_item_for_a_minute_and_the_others_for_a_moment(
    connections: list[asyncpg.Connection],
) -> None:
    [worker, *_] = connections
    limits = {SYNC: Limit(50, 2_500)}

    await quotas.record_exceeded(worker, SYNC, "item", "TRANSACTIONS_SYNC_LIMIT", limits)

    assert await quotas.take(worker, SYNC, "item", limits) == pytest.approx(60.0, abs=0.01)
    assert await quotas.take(worker, SYNC, "other", limits) < quotas.CLIENT_STEP_S
    await move_clock([worker], 60.1)
    assert await quotas.take(worker, SYNC, "item", limits) == 0
    assert await quotas.take(worker, SYNC, "item", limits) > 0  # and then as evenly as Plaid refills


async def test_many_429s_stop_the_client_for_a_minute_and_no_longer(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    limits = {SYNC: Limit(50, 2_500)}

    for place in range(30):
        await quotas.record_exceeded(worker, SYNC, f"item-{place}", "RATE_LIMIT", limits)

    assert await quotas.take(worker, SYNC, "other", limits) == pytest.approx(60.0, abs=0.01)


async def test_a_banks_own_limit_leaves_the_client_alone(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections

    for _ in range(30):
        await quotas.record_exceeded(worker, SYNC, "item", "INSTITUTION_RATE_LIMIT", LIMITS)

    assert await quotas.take(worker, SYNC, "other", LIMITS) == 0


async def test_a_429_is_an_incident_until_limits_have_held_for_a_while(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    is_open = f"SELECT count FROM tartan.incidents WHERE kind = '{incidents.RATE_LIMITED}' AND closed_at IS NULL"

    for _ in range(3):
        await quotas.record_exceeded(worker, ITEM, "item", "ITEM_GET_LIMIT", {})
    await move_clock([worker], quotas.QUIET_S - 1)
    await quotas.purge(worker)
    seen = await worker.fetchval(is_open)
    await move_clock([worker], quotas.QUIET_S + 1)
    await quotas.purge(worker)

    assert seen == 3
    assert await worker.fetchval(is_open) is None


async def test_workers_share_what_there_is_of_a_bucket_for_work_that_can_wait(
    connections: list[asyncpg.Connection],
) -> None:
    pace = quotas.client_share(Limit(15, 5_000), 0.1, burst_s=2.0)

    first = await asyncio.gather(*(quotas.take_some(worker, "sweep", 10, pace) for worker in connections))
    await move_clock(connections, 1.0)
    second = await asyncio.gather(*(quotas.take_some(worker, "sweep", 10, pace) for worker in connections))

    assert sum(first) == int(2.0 / pace.interval_s) + 1
    assert sum(second) in (int(1.0 / pace.interval_s), int(1.0 / pace.interval_s) + 1)
    assert max(*first, *second) <= 10


async def test_full_buckets_are_forgotten_and_others_are_not(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    await quotas.take(worker, SYNC, "idle", LIMITS)
    await move_clock([worker], 300.0)
    await quotas.take(worker, SYNC, "busy", LIMITS)

    forgotten = await quotas.purge(worker)

    assert forgotten == 1
    rows = await worker.fetch("SELECT item_id FROM tartan.rate_limit_buckets ORDER BY item_id")
    assert [row["item_id"] for row in rows] == ["", "busy"]
