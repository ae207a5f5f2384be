"""Plaid's quotas and the banks' breakers behind the port Limits, and with the stage at work."""

import asyncio
import random
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from runtime.incidents import incidents
from runtime.plaid_limits import SYNC, Limit
from runtime.scheduler import breakers, enqueue, leases, quotas
from runtime.scheduler.types import Mark, Released
from runtime.settings import Settings
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.options import Options
from schemas.errors import Retry
from schemas.log.records import Cause
from streams.limits import postgres_limits
from streams.limits.postgres_limits import PostgresLimits, run_probes
from tests.support.streams_world import World, streams, world

LIMITS = "off,transactions/sync=10/100"
DOWN, UP = "ins_109508", "ins_109509"


def limits(pool: asyncpg.Pool, plaid_limits: str = LIMITS) -> PostgresLimits:
    """A worker's limits."""
    return PostgresLimits(pool, Settings(plaid_limits=plaid_limits))


async def empty(pool: asyncpg.Pool, *, for_s: float) -> None:
    """Have the Item's bucket give nothing for a while."""
    burst_s = quotas.item_pace(Limit(10, 100)).burst_s
    await pool.execute(
        "INSERT INTO tartan.rate_limit_buckets (endpoint, item_id, tat) "
        "VALUES ($1, 'item', tartan.clock() + make_interval(secs => $2)) "
        "ON CONFLICT (endpoint, item_id) DO UPDATE SET tat = excluded.tat",
        SYNC,
        burst_s + for_s,
    )


async def test_a_request_waits_for_its_token_and_then_goes(pool: asyncpg.Pool) -> None:
    await empty(pool, for_s=0.4)
    began = asyncio.get_running_loop().time()

    async with asyncio.timeout(30):
        await limits(pool).take(SYNC, "item")

    assert asyncio.get_running_loop().time() - began >= 0.3
    assert (
        await pool.fetchval("SELECT count(*) FROM tartan.rate_limit_buckets WHERE item_id = '' AND endpoint = $1", SYNC)
        == 1
    )


async def test_a_pass_does_not_wait_longer_than_it_may_and_says_when_there_is_room(pool: asyncpg.Pool) -> None:
    await empty(pool, for_s=postgres_limits.WAIT_S_MAX + 20)

    with pytest.raises(Retry) as raised:
        await limits(pool).take(SYNC, "item")

    assert raised.value.wait_s == pytest.approx(postgres_limits.WAIT_S_MAX + 20, abs=10)


async def test_without_limits_nothing_is_asked_of_postgres(pool: asyncpg.Pool) -> None:
    pool.terminate()

    await limits(pool, "off").take(SYNC, "item")

    with pytest.raises(Retry, match="Postgres"):
        await limits(pool).take(SYNC, "item")


async def test_workers_at_once_share_what_a_bucket_lends(pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_limits, "WAIT_S_MAX", 0.5)  # an Item's next token comes after 13 s
    lends = 5

    taken = await asyncio.gather(*(limits(pool).take(SYNC, "item") for _ in range(20)), return_exceptions=True)

    assert sum(result is None for result in taken) == lends
    assert all(result is None or isinstance(result, Retry) for result in taken)


async def test_a_bank_whose_time_is_over_is_tried_although_postgres_was_away(
    pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_limits, "PROBE_EVERY_S", 0.05)
    await pool.execute(
        "INSERT INTO tartan.sync_state (item_id, tenant, user_number, partition, institution_id, due_at, not_before) "
        "VALUES ('item', 't', 1, 0, 'ins', now(), now() + interval '1 hour')"
    )
    await pool.execute("INSERT INTO tartan.breakers (institution_id, trips) VALUES ('ins', 1)")
    ready, asked = asyncio.Event(), [0]
    probe = breakers.probe

    async def away_at_first(connection: asyncpg.Connection) -> int:
        asked[0] += 1
        if asked[0] == 1:
            raise TimeoutError
        return await probe(connection)

    monkeypatch.setattr(breakers, "probe", away_at_first)
    await pool.execute("UPDATE tartan.breakers SET open_until = now()")
    probing = asyncio.create_task(run_probes(pool, Settings(), ready.set))
    try:
        await asyncio.wait_for(ready.wait(), 10)
    finally:
        probing.cancel()

    assert await pool.fetchval("SELECT ready_at <= now() FROM tartan.sync_state")


async def test_all_that_workers_do_at_once_ends_without_a_deadlock_and_leaves_no_item_waiting(
    pool: asyncpg.Pool,
) -> None:
    items = [f"item-{number:02}" for number in range(40)]
    for number, item in enumerate(items):
        await pool.execute("INSERT INTO tartan.credentials (item_id, tenant, user_number) VALUES ($1, 't', 1)", item)
        await pool.execute(
            "INSERT INTO tartan.sync_state (item_id, tenant, user_number, partition, institution_id, due_at) "
            "VALUES ($1, 't', 1, 0, $2, now())",
            item,
            f"ins_{number % 2}",
        )
    limit = {SYNC: Limit(600, 6_000)}

    async def work(worker: int) -> None:
        drawn = random.Random(worker)
        async with pool.acquire() as connection:
            for _ in range(80):
                await act(connection, drawn, f"ins_{drawn.randrange(2)}")

    async def act(connection: Any, drawn: random.Random, bank: str) -> None:
        some = drawn.sample(items, 10)
        match drawn.randrange(8):
            case 0 | 1:
                claims = await leases.claim(connection, slots=5, lease_s=60, holder="1", limit=limit[SYNC])
                for claimed in claims:
                    await quotas.take(connection, SYNC, claimed.item_id, limit)
                    await leases.release(connection, claimed, Released(outcome="unchanged", done=True))
            case 2:
                cause = Cause("webhook", 0, 0, 0)
                await enqueue.mark_webhooks(connection, [Mark(item, cause, datetime.now(UTC)) for item in some])
            case 3:
                await enqueue.mark_sweep(connection, some)
            case 4:
                await breakers.failed(connection, bank, "INSTITUTION_DOWN", 1)
            case 5:
                await breakers.answered(connection, bank)
            case 6:
                await quotas.record_exceeded(connection, SYNC, some[0], "RATE_LIMIT", limit)
                await quotas.purge(connection)
            case 7:
                # One bank's: two rows locked in the order in which they lie would be this test's own deadlock.
                over = "UPDATE tartan.breakers SET open_until = now() WHERE institution_id = $1 AND open_until > now()"
                await connection.execute(over, bank)
                await breakers.probe(connection)

    async with asyncio.timeout(120):
        await asyncio.gather(*(work(worker) for worker in range(7)))
    async with pool.acquire() as connection:
        for bank in ("ins_0", "ins_1"):
            await breakers.failed(connection, bank, "INSTITUTION_DOWN", 1)
            await breakers.answered(connection, bank)

    waiting = "SELECT count(*) FROM tartan.sync_state WHERE not_before > now() + interval '61 s'"
    assert await pool.fetchval(waiting) == 0
    assert await pool.fetchval("SELECT count(*) FROM tartan.sync_state WHERE lease_token IS NOT NULL") == 0
    assert await pool.fetchval("SELECT count(*) FROM tartan.incidents WHERE kind = 'institution_down'") > 0
    assert await pool.fetchval("SELECT count(*) FROM tartan.breakers WHERE failures > 0 OR trips > 0") == 0


@pytest.mark.timeout(180)
async def test_an_item_that_changes_without_end_waits_before_plaid_has_to_say_so(
    kafka_address: str, topic_prefix: str, database: str
) -> None:
    options = Options(seed=3, rate_limits="sandbox", history_transactions=3)
    given: dict[str, Any] = {"plaid_limits": "sandbox", "sweep_share": 0.0}
    async with (
        world(kafka_address, topic_prefix, database, options=options, **given) as stage_world,
        streams(stage_world),
    ):
        item = stage_world.bank.create_item("user")
        await stage_world.register(item)
        await stage_world.settled(item, timeout_s=60)

        async def is_held_after_another_webhook() -> bool:
            before = len(await stage_world.attempts(item))
            await stage_world.webhook(item)

            async def is_dealt_with() -> bool:
                return len(await stage_world.attempts(item)) > before or await _is_held(stage_world, item)

            await stage_world.until(is_dealt_with, what="a pass, or a wait", timeout_s=60)
            return await _is_held(stage_world, item)

        await stage_world.until(is_held_after_another_webhook, what="the Item waits for its quota", timeout_s=120)

        passes = await stage_world.attempts(item)
        assert set(passes) <= {"appended", "unchanged"}
        assert 20 <= len(passes) < 50  # Plaid's limit a minute
        assert not [key for key in stage_world.bank.requests if key[1] == "TRANSACTIONS_SYNC_LIMIT"]


async def _is_held(stage_world: World, item: Item) -> bool:
    row = await stage_world.row(item)
    return row["not_before"] is not None and row["not_before"] > datetime.now(UTC)


@pytest.mark.timeout(180)
async def test_a_bank_that_is_down_is_tried_by_one_item_and_its_items_go_on_when_it_is_back(
    kafka_address: str, topic_prefix: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"OPEN_S": 1.5, "OPEN_S_MAX": 1.5, "SPREAD_S": 0.5}.items():
        monkeypatch.setattr(breakers, name, value)
    options = Options(seed=3, rate_limits="off", history_transactions=5)
    given: dict[str, Any] = {"plaid_limits": "off", "institution_failures_max": 2, "sweep_share": 0.0}
    async with (
        world(kafka_address, topic_prefix, database, options=options, **given) as stage_world,
        streams(stage_world),
    ):
        items = [stage_world.bank.create_item(f"user-{number}", institution_id=DOWN) for number in range(12)]
        other = stage_world.bank.create_item("other", institution_id=UP)
        for item in (*items, other):
            await stage_world.register(item)
        await stage_world.settled(*items, other, timeout_s=60)

        for item in (*items, other):
            stage_world.bank.step(item.item_id)
        stage_world.bank.institution_down(DOWN)
        for item in (*items, other):
            await stage_world.webhook(item)
        await stage_world.settled(other, timeout_s=60)
        await stage_world.until(
            lambda: _probed(stage_world, 3), what="three Items have tried for their bank", timeout_s=60
        )
        failures = await _failures(stage_world, items)
        is_alerted = await _is_told(stage_world)
        stage_world.bank.institution_up(DOWN)
        await stage_world.settled(*items, timeout_s=60)

        for item in (items[0], items[-1], other):
            await stage_world.assert_true(item)
        assert is_alerted
        assert not await _is_told(stage_world)
        # Those that were under way when the breaker opened, and one for each time that it opened since.
        trips = await stage_world.pool.fetchval("SELECT count FROM tartan.incidents WHERE kind = 'institution_down'")
        assert failures <= stage_world.settings.fetch_concurrency + 2 + trips


async def _probed(stage_world: World, times: int) -> bool:
    trips = await stage_world.pool.fetchval("SELECT trips FROM tartan.breakers WHERE institution_id = $1", DOWN)
    return (trips or 0) >= times


async def _failures(stage_world: World, items: list[Item]) -> int:
    count = await stage_world.pool.fetchval(
        "SELECT count(*) FROM tartan.sync_runs WHERE outcome = 'failed' AND item_id = ANY($1)",
        [item.item_id for item in items],
    )
    return int(count)


async def _is_told(stage_world: World) -> bool:
    count = await stage_world.pool.fetchval(
        "SELECT count(*) FROM tartan.incidents WHERE kind = $1 AND subject = $2 AND closed_at IS NULL",
        incidents.INSTITUTION_DOWN,
        DOWN,
    )
    return bool(count)
