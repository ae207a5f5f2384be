"""The order of claims on a real Postgres: lanes, ageing, tenants, quotas, and what is held back."""

import asyncio
from collections import Counter
from datetime import timedelta
from random import Random
from typing import NamedTuple

import asyncpg
import pytest

from runtime import plaid_limits
from runtime.plaid_limits import Limit
from runtime.postgres.clock import set_clock
from runtime.scheduler import enqueue, leases, quotas
from runtime.scheduler.types import FairQueueState, Lane
from tests.support.streams_desk import Desk

WIDE = Limit(item=1_000, client=10_000)


def at_once(limit: Limit) -> int:
    """How many Items claims may take of a full bucket of the client."""
    pace = quotas.claim_pace(limit)
    return int(pace.burst_s / pace.interval_s + 1e-6) + 1


async def bucket(desk: Desk, item_id: str) -> float | None:
    """Seconds until a bucket is full again."""
    tat = await desk.connection.fetchval(
        "SELECT tat FROM tartan.rate_limit_buckets WHERE endpoint = $1 AND item_id = $2", plaid_limits.SYNC, item_id
    )
    return None if tat is None else float((tat - desk.now).total_seconds())


async def fill(desk: Desk, item_id: str, seconds: float) -> None:
    """Say when a bucket would be full again."""
    await desk.connection.execute(
        "INSERT INTO tartan.rate_limit_buckets (endpoint, item_id, tat) VALUES ($1, $2, $3) "
        "ON CONFLICT (endpoint, item_id) DO UPDATE SET tat = excluded.tat",
        plaid_limits.SYNC,
        item_id,
        desk.now + timedelta(seconds=seconds),
    )


async def test_claims_go_by_lane_and_in_a_lane_by_age(desk: Desk) -> None:
    for item_id, lane, ready_in in [
        ("backfill", 3, -9),
        ("younger", 0, -1),
        ("scheduled", 2, -8),
        ("manual", 1, -7),
        ("older", 0, -2),
    ]:
        await desk.lay(item_id, lane=lane, ready_in=ready_in)

    order = await desk.claimed()

    assert order == ["older", "younger", "manual", "scheduled", "backfill"]


async def test_a_lane_takes_turns_with_the_ones_before_it_once_its_oldest_item_has_waited(desk: Desk) -> None:
    for number in range(12):
        await desk.lay(f"webhook-{number:02}", lane=Lane.WEBHOOK)
    await desk.lay("backfill", lane=Lane.BACKFILL, ready_in=-3 * leases.AGE_S + 0.5)

    before = await desk.claimed(6)
    await desk.wait(1)
    after = await desk.claimed(6)

    assert "backfill" not in before
    assert after.index("backfill") < 2


async def test_webhooks_without_end_starve_no_lane_and_a_long_schedule_delays_no_webhook(desk: Desk) -> None:
    for lane in (Lane.SCHEDULE, Lane.BACKFILL):
        for number in range(60):
            await desk.lay(f"{lane.name}-{number}", lane=lane, ready_in=-900)
    waits, served = [], Counter[str]()

    for number in range(60):
        await desk.lay(f"WEBHOOK-{number}", lane=Lane.WEBHOOK)
        claims = await desk.claim(2)  # twice what webhooks ask for: the rest is the others'
        served.update(claimed.item_id.split("-")[0] for claimed in claims)
        waits.append(number + 1 - served["WEBHOOK"])
    for number in range(60, 180):
        await desk.lay(f"WEBHOOK-{number}", lane=Lane.WEBHOOK)
    flooded = Counter([(await desk.claimed(1))[0].split("-")[0] for _ in range(44)])

    assert max(waits) <= 1
    assert (served["WEBHOOK"], served["SCHEDULE"], served["BACKFILL"]) == (60, 40, 20)
    for lane, share in [("WEBHOOK", 32), ("SCHEDULE", 8), ("BACKFILL", 4)]:
        assert abs(flooded[lane] - share) <= 1


async def test_a_tenant_with_one_item_waits_for_a_turn_and_not_for_the_others_items(desk: Desk) -> None:
    for number in range(200):
        await desk.lay(f"large-{number}", tenant="large", lane=Lane.SCHEDULE, ready_in=-600)
    await desk.claim(50)
    await desk.lay("small", tenant="small", lane=Lane.SCHEDULE)

    order = await desk.claimed(3)

    assert "small" in order[:2]


async def test_tenants_take_turns_by_their_weights_over_many_claims_and_within_one(desk: Desk) -> None:
    desk.weigh({"heavy": 3.0})
    for number in range(80):
        for tenant in ("heavy", "light", "plain"):
            await desk.lay(f"{tenant}-{number}", tenant=tenant, lane=Lane.BACKFILL)

    one_by_one = Counter([(await desk.claimed(1))[0].split("-")[0] for _ in range(50)])
    at_once = Counter(item.split("-")[0] for item in await desk.claimed(50))

    assert one_by_one == {"heavy": 30, "light": 10, "plain": 10}
    assert at_once == one_by_one


async def test_a_tenant_that_was_idle_does_not_catch_up(desk: Desk) -> None:
    for number in range(60):
        await desk.lay(f"busy-{number}", tenant="busy", lane=Lane.BACKFILL)
    await desk.claim(40)
    for number in range(20):
        await desk.lay(f"late-{number}", tenant="late", lane=Lane.BACKFILL)

    order = [item.split("-")[0] for item in await desk.claimed(10)]

    assert Counter(order) == {"busy": 5, "late": 5}


async def test_workers_that_look_at_once_share_what_is_ready(desk: Desk, database: str) -> None:
    for number in range(40):
        await desk.lay(f"item-{number}", lane=Lane.BACKFILL)
    async with asyncpg.create_pool(database, min_size=4, max_size=4) as pool:

        async def look() -> list[str]:
            async with pool.acquire() as connection:
                await set_clock(connection, desk.now)
                claims = await leases.claim(connection, slots=10, lease_s=60, holder="1", limit=WIDE)
                return [claimed.item_id for claimed in claims]

        rounds = await asyncio.gather(*(look() for _ in range(4)))

    assert [len(items) for items in rounds] == [10] * 4
    assert len({item for items in rounds for item in items}) == 40
    assert await bucket(desk, quotas.CLIENT) == pytest.approx(40 * quotas.client_pace(WIDE).interval_s, abs=0.001)


async def test_a_claim_takes_no_more_items_than_the_client_has_tokens_and_says_when_more_come(desk: Desk) -> None:
    limit = Limit(item=50, client=70)  # whose bursts are whole tokens
    pace = quotas.claim_pace(limit)
    for number in range(20):
        await desk.lay(f"item-{number:02}", lane=Lane.WEBHOOK)

    first = await desk.claim(10, limit=limit)
    nothing = await desk.claim(10, limit=limit)
    await desk.wait(pace.interval_s)
    next_ = await desk.claim(10, limit=limit)

    assert len(first) == at_once(limit) < 10
    assert (len(nothing), len(next_)) == (0, 1)
    assert first.more_in_s == pytest.approx(pace.interval_s, abs=0.001)
    assert nothing.more_in_s == pytest.approx(pace.interval_s, abs=0.001)


async def test_workers_never_take_more_than_the_quota_even_of_a_bucket_that_nobody_has_used(
    desk: Desk, database: str
) -> None:
    limit = Limit(item=50, client=60)
    for number in range(40):
        await desk.lay(f"item-{number}", lane=Lane.WEBHOOK)
    async with asyncpg.create_pool(database, min_size=6, max_size=6) as pool:

        async def look() -> int:
            async with pool.acquire() as connection:
                await set_clock(connection, desk.now)
                return len(await leases.claim(connection, slots=5, lease_s=60, holder="1", limit=limit))

        taken = sum(await asyncio.gather(*(look() for _ in range(6))))

    assert taken == at_once(limit) < 30


async def test_both_tokens_are_taken_with_the_claim_and_unlinks_take_none(desk: Desk) -> None:
    await desk.lay("item", lane=Lane.WEBHOOK)
    await desk.lay("ending", lane=Lane.WEBHOOK)
    await enqueue.request_unlink(desk.connection, "ending")

    claims = await desk.claim(limit=WIDE)

    assert {claimed.item_id for claimed in claims} == {"item", "ending"}
    assert await bucket(desk, quotas.CLIENT) == pytest.approx(quotas.client_pace(WIDE).interval_s, abs=0.001)
    assert await bucket(desk, "item") == pytest.approx(quotas.item_pace(WIDE).interval_s, abs=0.001)
    assert await bucket(desk, "ending") is None


async def test_an_empty_quota_lets_only_unlinks_through(desk: Desk) -> None:
    await desk.lay("item", lane=Lane.WEBHOOK)
    await desk.lay("ending", lane=Lane.WEBHOOK)
    await enqueue.request_unlink(desk.connection, "ending")
    await fill(desk, quotas.CLIENT, 3600)

    claims = await desk.claim(limit=WIDE)

    assert [claimed.item_id for claimed in claims] == ["ending"]
    assert claims.more_in_s is not None
    assert 3500 < claims.more_in_s <= 3600


async def test_an_item_whose_own_bucket_is_empty_is_passed_over_until_its_token_is_there(desk: Desk) -> None:
    burst_s = quotas.item_pace(WIDE).burst_s
    await desk.lay("emptied", lane=Lane.WEBHOOK, ready_in=-1)
    await desk.lay("other", lane=Lane.WEBHOOK)
    await fill(desk, "emptied", burst_s + 20)

    first = await desk.claim(limit=WIDE)
    held_s = await desk.ready_in("emptied")
    await desk.wait(19)
    early = await desk.claimed(limit=WIDE)
    await desk.wait(1.01)
    then = await desk.claimed(limit=WIDE)

    assert [claimed.item_id for claimed in first] == ["other"]
    assert held_s == pytest.approx(20, abs=0.001)
    assert (early, then) == ([], ["emptied"])


async def test_items_that_are_held_back_do_not_hide_those_behind_them(desk: Desk) -> None:
    for number in range(30):
        await desk.lay(f"emptied-{number}", lane=Lane.WEBHOOK, ready_in=-5)
        await fill(desk, f"emptied-{number}", 3600)
    await desk.lay("behind", lane=Lane.WEBHOOK)

    rounds = []
    for _ in range(9):
        rounds.append(await desk.claim(1, limit=WIDE))
        if rounds[-1].more_in_s != 0:
            break

    assert [claimed.item_id for claims in rounds for claimed in claims] == ["behind"]
    assert len(rounds) <= 9


async def test_without_limits_nothing_is_counted(desk: Desk) -> None:
    await desk.lay("item", lane=Lane.WEBHOOK)

    await desk.claim()

    assert await desk.connection.fetchval("SELECT count(*) FROM tartan.rate_limit_buckets") == 0


async def test_a_quarantined_item_that_is_marked_is_looked_at_once_a_minute(desk: Desk) -> None:
    await desk.register("item")
    [claimed] = await desk.claim()
    await leases.quarantine(desk.connection, claimed, reason="too large")
    await desk.release(claimed, stopped="quarantined")
    await desk.mark()

    looked = await desk.claim()
    held_s = await desk.ready_in()
    await desk.mark()
    still_held_s = await desk.ready_in()

    assert (len(looked), looked.more_in_s) == (0, 0.0)
    assert held_s == still_held_s == leases.QUARANTINED_LOOK_S


async def test_a_redrive_makes_a_quarantined_item_ready_at_once(desk: Desk) -> None:
    await desk.register("item")
    [claimed] = await desk.claim()
    await leases.quarantine(desk.connection, claimed, reason="too large")
    await desk.release(claimed, stopped="quarantined")
    await desk.mark()
    await desk.claim()

    await desk.connection.execute("UPDATE tartan.quarantines SET redrive_offset = 5")
    await enqueue.mark_again(desk.connection, [], redriven=["item"])

    assert await desk.claimed() == ["item"]


async def test_what_holds_an_item_back_during_its_pass_holds_it_after_its_release(desk: Desk) -> None:
    await desk.register("item")
    [claimed] = await desk.claim()

    await desk.connection.execute(
        "UPDATE tartan.sync_state SET not_before = $1", desk.now + timedelta(seconds=300)
    )  # as the breaker of its bank does
    await desk.release(claimed, done=False, due_in_s=1, not_before_s=60)

    assert await desk.ready_in() == 300


async def test_a_claim_tells_that_the_bank_is_failing(desk: Desk) -> None:
    await desk.lay("item", lane=Lane.WEBHOOK)
    await desk.lay("other", lane=Lane.WEBHOOK)
    await desk.connection.execute("UPDATE tartan.sync_state SET institution_id = 'ins_2' WHERE item_id = 'other'")
    await desk.connection.execute("INSERT INTO tartan.breakers (institution_id, failures) VALUES ('ins_1', 1)")
    await desk.connection.execute("INSERT INTO tartan.breakers (institution_id, failures) VALUES ('ins_2', 0)")

    claims = await desk.claim()

    assert {claimed.item_id: claimed.bank_failing for claimed in claims} == {"item": True, "other": False}


class Waiting(NamedTuple):
    """An Item that is ready, in the model. Units: `age_s` beyond its ready_at."""

    item_id: str
    tenant: str
    lane: int
    age_s: float


def chosen(waiting: list[Waiting], standing: FairQueueState, slots: int) -> list[str]:
    """The rule of a claim, over the whole queue at once."""
    ahead = dict(zip(zip(standing.tenants, standing.lanes, strict=True), standing.ahead, strict=True))
    weights = dict(zip(standing.weighted, standing.weights, strict=True))
    queues: dict[tuple[str, int], list[Waiting]] = {}
    for item in sorted(waiting, key=lambda item: (-item.age_s, item.item_id)):
        queues.setdefault((item.tenant, item.lane), []).append(item)
    turns: dict[int, list[tuple[float, float, str]]] = {}
    for (tenant, lane), queue in queues.items():
        for place, item in enumerate(queue):
            turn = ahead.get((tenant, lane), 0.0) + place / weights.get(tenant, 1.0)
            turns.setdefault(lane, []).append((turn, -item.age_s, item.item_id))
    order: list[tuple[float, float, int, int, str]] = []
    for lane, flow in turns.items():
        effective = max(0, lane - max(-age for _, age, _ in flow) // leases.AGE_S)
        for place, (_, _, item_id) in enumerate(sorted(flow)):
            lane_turn = standing.lanes_ahead[lane] + place / standing.lane_weights[lane]
            order.append((effective, lane_turn, lane, place, item_id))
    return [item_id for *_, item_id in sorted(order)][:slots]


@pytest.mark.parametrize("seed", range(4))
async def test_claims_follow_the_rule_whatever_waits(desk: Desk, seed: int) -> None:
    rng = Random(seed)
    tenants = [f"tenant-{number}" for number in range(rng.choice([1, 3, 40]))]
    desk.weigh({tenant: rng.choice([0.5, 2.0, 5.0]) for tenant in tenants[::3]})
    waiting: dict[str, Waiting] = {}
    for number in range(150):
        # No two of one age: between those Postgres may choose.
        age_s = rng.choice([rng.uniform(0, 1), rng.uniform(0, 14), rng.uniform(0, 90)])
        item = Waiting(f"item-{number}", rng.choice(tenants), rng.choice(list(Lane)), round(age_s, 6))
        await desk.lay(item.item_id, tenant=item.tenant, lane=item.lane, ready_in=-item.age_s)
        waiting[item.item_id] = item

    while waiting:
        slots = rng.choice([1, 2, 5, 8])
        expected = chosen(list(waiting.values()), desk.turns.state(), slots)
        claimed_items = await desk.claimed(slots, lease_s=3600.0)
        assert claimed_items == expected, f"seed {seed}"
        for item_id in claimed_items:
            del waiting[item_id]
        await desk.wait(1)
        waiting = {item_id: item._replace(age_s=item.age_s + 1) for item_id, item in waiting.items()}


async def test_half_a_day_at_twice_the_quota_is_shared_evenly_and_a_small_tenant_never_waits(desk: Desk) -> None:
    items, interval_s = 90, 900.0  # 6 a minute are asked for
    limit = Limit(item=50, client=4)
    token_s = quotas.client_pace(limit).interval_s  # about 3 a minute are given
    for number in range(items):
        await desk.register(f"large-{number}", tenant="large")
    await desk.register("small", tenant="small")
    await desk.connection.execute("UPDATE tartan.sync_state SET due_at = NULL")
    passes, waits = Counter[str](), []

    for _ in range(int(12 * 3600 / token_s)):
        await desk.wait(token_s)
        await enqueue.mark_scheduled(
            desk.connection, interval_s=interval_s, recheck_s=86400, spread_s=15, items_max=2_000
        )
        small = await desk.ready_in("small")
        for claimed in await desk.claim(8, limit=limit):
            passes[claimed.item_id] += 1
            await desk.release(claimed, synced=True)
            if claimed.item_id == "small" and small is not None:
                waits.append(-small)

    large = [passes[f"large-{number}"] for number in range(items)]
    assert max(large) - min(large) <= 0.1 * min(large)
    assert sum(passes.values()) >= 0.95 * 12 * 3600 / token_s
    assert len(waits) > 40
    assert max(waits) <= 2 * token_s


async def test_histories_that_use_up_the_quota_leave_claims_their_share_of_it(desk: Desk) -> None:
    limit = Limit(item=100_000, client=600)
    limits = {plaid_limits.SYNC: limit}
    await desk.lay("webhook", lane=Lane.WEBHOOK)
    pages = claims = 0

    for _ in range(300):
        while not await quotas.take_page(desk.connection, "history", limits):
            pages += 1
        for claimed in await desk.claim(limit=limit):
            claims += 1
            await desk.release(claimed, due_in_s=0.0)
        await desk.wait(0.2)

    # Of 540 tokens in 65 s a fifth, after the 18 s in which half of the burst comes back; else none at all.
    share = 540 / 65 * (1 - quotas.PAGES_SHARE)
    assert claims >= 40 * share
    assert pages >= 58 * share * 4
    assert pages + claims <= 600


async def test_a_page_that_finds_no_token_of_its_item_leaves_that_of_the_pages(desk: Desk) -> None:
    limits = {plaid_limits.SYNC: Limit(item=2, client=600)}

    first = await quotas.take_page(desk.connection, "item", limits)
    before = await desk.connection.fetchval(
        "SELECT tat FROM tartan.rate_limit_buckets WHERE endpoint = $1", quotas.PAGES
    )
    second = await quotas.take_page(desk.connection, "item", limits)
    after = await desk.connection.fetchval(
        "SELECT tat FROM tartan.rate_limit_buckets WHERE endpoint = $1", quotas.PAGES
    )

    assert (first, second) == (0, 65)
    assert before == after > desk.now


async def test_pages_of_a_client_without_a_quota_wait_for_nothing(desk: Desk) -> None:
    assert [await quotas.take_page(desk.connection, "item", {}) for _ in range(3)] == [0, 0, 0]
