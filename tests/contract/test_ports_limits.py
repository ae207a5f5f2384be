"""The port Limits: memory and Postgres give out the same tokens, and hold back and let go the same Items."""

import random
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

import sandbox.simulation.memory.limits
import streams.limits.postgres_limits
from runtime.scheduler.breakers import OPEN_S, PROBE_S, SPREAD_S
from runtime.scheduler.types import Released
from schemas.errors import Retry
from tests.support.scheduler_sides import Clock, Side, memory, postgres

SYNC, ACCOUNTS = "transactions/sync", "accounts/get"
DOWN = "INSTITUTION_DOWN"
STEPS = 60
DONE = Released(outcome="unchanged", done=True, synced=True)
APART_S = 0.2
"""How far the two may lie apart where one waits at least 50 ms between two looks."""


class Waiting:
    """Stands for asyncio where a token is waited for: a wait moves the side's clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def get_running_loop(self) -> "Waiting":
        return self

    def time(self) -> float:
        return self._clock.at.timestamp()

    async def sleep(self, seconds: float) -> None:
        self._clock.advance(max(seconds, 0.000_001))


def waits_by_clocks(patch: pytest.MonkeyPatch, *sides: Side) -> None:
    for module, side in zip((sandbox.simulation.memory.limits, streams.limits.postgres_limits), sides, strict=True):
        patch.setattr(module, "asyncio", Waiting(side.clock))


@pytest.fixture
def sides(pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch) -> list[Side]:
    found = [memory(metered=True), postgres(pool, metered=True)]
    waits_by_clocks(monkeypatch, *found)
    return found


@pytest.fixture(params=["memory", "postgres"])
def side(request: pytest.FixtureRequest, sides: list[Side]) -> Side:
    return sides[0] if request.param == "memory" else sides[1]


async def waited(side: Side, endpoint: str, item_id: str) -> float | None:
    """Take a token, and say how long that took; None where nothing is given."""
    began = side.clock.at
    try:
        await side.limits.take(endpoint, item_id)
    except Retry:
        return None
    return (side.clock.at - began).total_seconds()


async def test_a_burst_is_given_at_once_and_then_the_pace_is_kept(side: Side) -> None:
    waits = [await waited(side, SYNC, "a") for _ in range(6)]

    given = [wait for wait in waits if wait is not None]
    assert len(given) == 6
    assert all(wait <= APART_S for wait in given[:3])
    assert all(wait > 10.0 for wait in given[3:])


async def test_an_endpoint_without_a_limit_gives_always(side: Side) -> None:
    assert {await waited(side, "identity/get", "a") for _ in range(50)} == {0.0}


async def test_after_a_429_the_item_gets_nothing_for_a_minute_and_others_go_on(side: Side) -> None:
    await side.limits.exceeded(SYNC, "a", error_code="TRANSACTIONS_SYNC_LIMIT")

    mine, other = await waited(side, SYNC, "a"), await waited(side, SYNC, "b")

    assert mine is None or mine >= 60.0
    assert other is not None
    assert other < 60.0


async def test_a_bank_that_fails_in_a_row_holds_its_items_until_one_that_tries_reaches_it(side: Side) -> None:
    for item_id, bank in (("a", "down"), ("b", "down"), ("c", "up")):
        await side.register(item_id, "t", bank)
    for _ in range(3):
        await side.limits.institution_failed("down", error_code=DOWN)

    [other] = await side.store.claim(5)
    await side.store.release(other, DONE)
    early = await side.probe()
    side.clock.advance(OPEN_S + 1)
    tries, again = await side.probe(), await side.probe()
    [trying] = await side.store.claim(5)
    await side.limits.institution_answered("down")
    await side.store.release(trying, DONE)
    side.clock.advance(SPREAD_S + 1)
    freed = {claimed.item_id for claimed in await side.store.claim(5)}

    assert other.item_id == "c"
    assert (early, tries, again) == (0, 1, 0)
    assert freed | {trying.item_id} >= {"a", "b"}


async def test_where_the_one_that_tries_dies_another_one_tries(side: Side) -> None:
    for item_id in ("a", "b"):
        await side.register(item_id, "t", "down")
    for _ in range(3):
        await side.limits.institution_failed("down", error_code=DOWN)
    side.clock.advance(OPEN_S + 1)
    await side.probe()
    [first] = await side.store.claim(5)

    side.clock.advance(PROBE_S + 1)
    await side.probe()
    later = {claimed.item_id for claimed in await side.store.claim(5)}

    assert later - {first.item_id} == {"a", "b"} - {first.item_id}


async def test_an_answer_between_outages_counts_from_the_beginning(side: Side) -> None:
    await side.register("a", "t", "down")

    for _ in range(4):
        await side.limits.institution_failed("down", error_code=DOWN)
        await side.limits.institution_answered("down")

    assert [claimed.item_id for claimed in await side.store.claim(5)] == ["a"]


@pytest.mark.parametrize("seed", range(4))
async def test_the_same_operations_give_the_same_tokens_and_hold_the_same_items(seed: int, sides: list[Side]) -> None:
    rng = random.Random(seed)
    items = [f"item-{number}" for number in range(6)]
    for number, item_id in enumerate(items):
        for side in sides:
            await side.register(item_id, "t", f"bank-{number % 2}")

    for step in range(STEPS):
        act = rng.choice(("take", "take", "take", "exceeded", "failed", "failed", "answered", "probe", "time", "pass"))
        item_id, share = rng.choice(items), rng.random()
        said = [await _act(side, act, item_id, share) for side in sides]
        assert _near(*said), f"step {step}: {act} {item_id} gives {said}"
        at = max(side.clock.at for side in sides)
        for side in sides:
            side.clock.at = at
        for name in items:
            ours, theirs = [(await side.row(name))["not_before"] for side in sides]
            assert _as_held(ours, theirs, at), f"step {step}: {act}, {name} until {ours} and {theirs}"


async def _act(side: Side, act: str, item_id: str, share: float) -> Any:
    bank = f"bank-{int(share * 2)}"
    if act == "take":
        return await waited(side, SYNC if share < 0.5 else ACCOUNTS, item_id)
    if act == "exceeded":
        return await side.limits.exceeded(SYNC, item_id, error_code="TRANSACTIONS_SYNC_LIMIT")
    if act == "failed":
        return await side.limits.institution_failed(bank, error_code=DOWN)
    if act == "answered":
        return await side.limits.institution_answered(bank)
    if act == "probe":
        return await side.probe()
    if act == "time":
        return side.clock.advance(round(share * 400, 3))
    claims = await side.store.claim(2)
    for claimed in claims:
        await side.store.release(claimed, Released(outcome="unchanged", done=True, due_in_s=5.0))
    return len(claims)


def _near(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return abs(ours - theirs) <= APART_S
    return bool(ours == theirs)


def _as_held(ours: datetime | None, theirs: datetime | None, now: datetime) -> bool:
    """Whether both are held as long, but for the place within the minute over which a bank's Items are spread."""
    ends = [now if until is None else max(until, now) for until in (ours, theirs)]
    return abs(ends[0] - ends[1]) <= timedelta(seconds=SPREAD_S)
