"""Breakers of banks on a real Postgres, with its clock in our hands."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from runtime.incidents import incidents
from runtime.postgres.clock import set_clock
from runtime.scheduler import breakers

NOW = datetime(2026, 1, 2, tzinfo=UTC)
FAILURES_MAX = 3
DOWN = "INSTITUTION_DOWN"
BANK, OTHER = "ins_1", "ins_2"


@pytest.fixture
async def connections(database: str) -> AsyncIterator[list[asyncpg.Connection]]:
    """Workers, each with its connection, on one clock."""
    opened = [await asyncpg.connect(database) for _ in range(5)]
    await move_clock(opened, 0)
    yield opened
    for connection in opened:
        await connection.close()


async def move_clock(connections: list[asyncpg.Connection], seconds: float) -> None:
    """Set all workers' clocks."""
    for connection in connections:
        await set_clock(connection, NOW + timedelta(seconds=seconds))


async def add(connection: asyncpg.Connection, *items: str, bank: str = BANK, **fields: object) -> None:
    """Items of a bank that are due now, or as `fields` says."""
    given = {"due_at": NOW} | fields
    for item in items:
        await connection.execute(
            "INSERT INTO tartan.sync_state (item_id, tenant, user_number, partition, institution_id) "
            "VALUES ($1, 't', 1, 0, $2)",
            item,
            bank,
        )
        for name, value in given.items():
            await connection.execute(f"UPDATE tartan.sync_state SET {name} = $2 WHERE item_id = $1", item, value)


async def fail(connection: asyncpg.Connection, times: int = 1, *, bank: str = BANK) -> bool:
    """Outage answers of a bank."""
    return [await breakers.failed(connection, bank, DOWN, FAILURES_MAX) for _ in range(times)][-1]


async def ready(connection: asyncpg.Connection) -> set[str]:
    """Items that a claim would take."""
    rows = await connection.fetch("SELECT item_id FROM tartan.sync_state WHERE ready_at <= tartan.clock()")
    return {row["item_id"] for row in rows}


async def is_told(connection: asyncpg.Connection, bank: str = BANK) -> bool:
    """Whether the incident of a bank is open."""
    return bool(
        await connection.fetchval(
            "SELECT true FROM tartan.incidents WHERE kind = $1 AND subject = $2 AND closed_at IS NULL",
            incidents.INSTITUTION_DOWN,
            bank,
        )
    )


async def test_fewer_failures_than_are_set_hold_nothing_back(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    await add(worker, "a", "b")

    is_open = await fail(worker, FAILURES_MAX - 1)

    assert (is_open, await ready(worker), await is_told(worker)) == (False, {"a", "b"}, False)


async def test_as_many_failures_in_a_row_as_are_set_hold_back_all_items_of_the_bank_and_of_no_other(
    connections: list[asyncpg.Connection],
) -> None:
    [worker, *_] = connections
    await add(worker, "a", "b")
    await add(worker, "idle", due_at=None)
    await add(worker, "leaving", unlink_requested=True)
    await add(worker, "c", bank=OTHER)

    is_open = await fail(worker, FAILURES_MAX)

    # Plaid ends an Item without its bank.
    assert (is_open, await ready(worker), await is_told(worker)) == (True, {"c", "leaving"}, True)
    await worker.execute("UPDATE tartan.sync_state SET due_at = $1 WHERE item_id = 'idle'", NOW)  # a webhook
    assert await ready(worker) == {"c", "leaving"}


async def test_an_answer_between_them_begins_the_count_anew(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    await add(worker, "a")

    await fail(worker, FAILURES_MAX - 1)
    await breakers.answered(worker, BANK)
    is_open = await fail(worker, FAILURES_MAX - 1)

    assert (is_open, await ready(worker)) == (False, {"a"})


async def test_failures_that_many_workers_see_at_once_open_a_breaker_once(
    connections: list[asyncpg.Connection],
) -> None:
    await add(connections[0], "a")

    await asyncio.gather(*(fail(worker, 4) for worker in connections))

    [[trips, failures]] = await connections[0].fetch("SELECT trips, failures FROM tartan.breakers")
    assert (trips, failures) == (1, 20)
    [[sights]] = await connections[0].fetch("SELECT count FROM tartan.incidents")
    assert sights == 1


async def test_when_the_outage_is_over_one_item_tries_whoever_looks(connections: list[asyncpg.Connection]) -> None:
    await add(connections[0], *"abcde")
    await fail(connections[0], FAILURES_MAX)
    await move_clock(connections, breakers.OPEN_S + 1)

    probes = await asyncio.gather(*(breakers.probe(worker) for worker in connections))

    assert sorted(probes) == [0, 0, 0, 0, 1]
    assert len(await ready(connections[0])) == 1


async def test_before_the_outage_is_over_nobody_tries(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    await add(worker, "a", "b")
    await fail(worker, FAILURES_MAX)
    await move_clock(connections, breakers.OPEN_S - 1)

    assert await breakers.probe(worker) == 0
    assert await ready(worker) == set()


async def test_another_item_tries_where_the_first_one_died_with_its_worker(
    connections: list[asyncpg.Connection],
) -> None:
    [worker, *_] = connections
    await add(worker, *"abc")
    await fail(worker, FAILURES_MAX)
    await move_clock(connections, breakers.OPEN_S + 1)
    await breakers.probe(worker)
    [first] = await ready(worker)
    await worker.execute(
        "UPDATE tartan.sync_state SET lease_token = 'x', last_attempt_at = tartan.clock() WHERE item_id = $1", first
    )

    await move_clock(connections, breakers.OPEN_S + 2)
    at_once = await breakers.probe(worker)
    await move_clock(connections, breakers.OPEN_S + 2 + breakers.PROBE_S)
    later = await breakers.probe(worker)

    assert (at_once, later) == (0, 1)
    assert len(await ready(worker)) == 2


async def test_its_failure_opens_the_breaker_for_twice_as_long_up_to_six_hours(
    connections: list[asyncpg.Connection],
) -> None:
    [worker, *_] = connections
    await add(worker, *"abc")
    await fail(worker, FAILURES_MAX)
    now_s, waits_s = 0.0, []

    for _ in range(9):
        open_until = await worker.fetchval("SELECT open_until FROM tartan.breakers")
        waits_s.append((open_until - NOW).total_seconds() - now_s)
        now_s += waits_s[-1] + 1
        await move_clock(connections, now_s)
        assert await breakers.probe(worker) == 1
        assert await fail(worker)
        assert await ready(worker) == set()
        await fail(worker)  # of a request that was under way: says nothing new

    assert waits_s == [300, 600, 1200, 2400, 4800, 9600, 19200, 21600, 21600]


async def test_its_success_lets_all_items_go_within_a_minute_and_not_at_once(
    connections: list[asyncpg.Connection],
) -> None:
    [worker, *_] = connections
    items = [f"item-{number}" for number in range(60)]
    await add(worker, *items)
    await fail(worker, FAILURES_MAX)
    await move_clock(connections, breakers.OPEN_S + 1)
    await breakers.probe(worker)

    assert await breakers.answered(worker, BANK)

    places = {len(await ready(worker))}
    for seconds in (20, 40, 61):
        await move_clock(connections, breakers.OPEN_S + 1 + seconds)
        places.add(len(await ready(worker)))
    assert len(places) == 4
    assert max(places) == 60
    assert not await is_told(worker)
    assert not await fail(worker, FAILURES_MAX - 1)


async def test_an_item_that_failed_waits_for_its_bank_and_no_longer(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    later = NOW + timedelta(hours=5)
    await add(worker, "failed", due_at=later, last_error=f'{{"code": "{DOWN}", "detail": "INSTITUTION_ERROR"}}')
    await add(worker, "broken", due_at=later, last_error='{"code": "INTERNAL_SERVER_ERROR", "detail": "API_ERROR"}')
    await fail(worker, FAILURES_MAX)
    await move_clock(connections, breakers.OPEN_S + 1)

    probes = await breakers.probe(worker)
    tried = await ready(worker)
    await worker.execute("UPDATE tartan.sync_state SET due_at = $1", later)
    await breakers.answered(worker, BANK)

    await move_clock(connections, breakers.OPEN_S + 62)
    assert (probes, tried, await ready(worker)) == (1, {"failed"}, {"failed"})


async def test_an_item_that_waits_for_plaids_limit_goes_on_waiting(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    until = NOW + timedelta(hours=8)
    await add(worker, "limited", not_before=until, last_error='{"code": "RATE_LIMIT", "detail": "RATE_LIMIT_EXCEEDED"}')
    await fail(worker, FAILURES_MAX)
    await breakers.answered(worker, BANK)

    assert await worker.fetchval("SELECT not_before FROM tartan.sync_state") == until


async def test_a_quarantined_item_does_not_try_for_its_bank(connections: list[asyncpg.Connection]) -> None:
    [worker, *_] = connections
    await add(worker, "a", "z")
    await worker.execute(
        "INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader) VALUES ('a', 0, 0, '', 'x')"
    )
    await fail(worker, FAILURES_MAX)
    await move_clock(connections, breakers.OPEN_S + 1)

    await breakers.probe(worker)

    assert await ready(worker) == {"z"}


async def test_an_item_that_is_being_marked_is_let_go_too(connections: list[asyncpg.Connection]) -> None:
    worker, marker, *_ = connections
    await add(worker, "a", "b")
    await fail(worker, FAILURES_MAX)
    mark = marker.transaction()
    await mark.start()
    await marker.execute("UPDATE tartan.sync_state SET generation = generation + 1 WHERE item_id = 'a'")

    answering = asyncio.create_task(breakers.answered(worker, BANK))
    await waits_for_a_lock(connections[2])
    await mark.commit()
    await answering

    await move_clock(connections, 61)
    assert await ready(worker) == {"a", "b"}


async def test_items_that_are_being_marked_hold_up_no_failure(connections: list[asyncpg.Connection]) -> None:
    worker, marker, *_ = connections
    await add(worker, "a", "b")
    mark = marker.transaction()
    await mark.start()
    await marker.execute("UPDATE tartan.sync_state SET generation = generation + 1 WHERE item_id = 'a'")

    async with asyncio.timeout(10):
        await fail(worker, FAILURES_MAX)
    during = await ready(worker)
    await mark.commit()
    await fail(worker)

    assert (during, await ready(worker)) == ({"a"}, set())


async def test_more_items_than_one_statement_takes_are_all_held_back_and_let_go(
    connections: list[asyncpg.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakers, "ITEMS_AT_ONCE_MAX", 7)
    [worker, *_] = connections
    await add(worker, *(f"item-{number}" for number in range(30)))

    await fail(worker, FAILURES_MAX)
    held = await ready(worker)
    await breakers.answered(worker, BANK)

    await move_clock(connections, 61)
    assert (held, len(await ready(worker))) == (set(), 30)


async def test_a_crash_before_the_items_were_held_back_is_made_good_by_the_next_failure(
    connections: list[asyncpg.Connection],
) -> None:
    [worker, *_] = connections
    await add(worker, "a", "b")
    await fail(worker, FAILURES_MAX)
    await worker.execute("UPDATE tartan.sync_state SET not_before = NULL")

    await fail(worker)

    assert await ready(worker) == set()


async def waits_for_a_lock(connection: asyncpg.Connection) -> None:
    """Wait until somebody waits for a lock."""
    async with asyncio.timeout(10):
        while not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
