"""The ports of the database: memory and Postgres keep the same promises; the same operations leave the same rows."""

import random
from typing import Any

import asyncpg
import pytest

from runtime.kafka.reader import Position
from runtime.scheduler.types import Claimed, Hint, Lane, Mark, Released
from schemas.log.records import Cause
from tests.support.scheduler_sides import LEASE_S, Side, memory, postgres

DONE = Released(outcome="unchanged", done=True, synced=True)
STEPS = 70


async def mark(side: Side, item_id: str, *, offset: int = 0, key: bytes = b"", hint: bool = False) -> set[bytes]:
    async with side.marking({0}) as begun:
        fresh = await begun.new_keys([key or offset.to_bytes(8, "big")])
        hints = [Hint(item_id, 0, offset, "ERROR", {}, side.clock.now())] if hint else []
        if fresh:
            await begun.mark([Mark(item_id, Cause("webhook", 0, offset), side.clock.now())], hints)
        await begun.advance({0: Position(offset + 1, b"c")})
    return fresh


async def mark_and_fail(side: Side, item_id: str) -> None:
    async with side.marking({0}) as begun:
        await begun.mark([Mark(item_id, Cause("webhook"), side.clock.now())], [])
        await begun.advance({0: Position(99 // 0)})


async def test_an_item_is_leased_once_until_its_lease_ends(side: Side) -> None:
    await side.register("a", "t", "bank")

    [first] = await side.store.claim(5)
    second = await side.store.claim(5)
    side.clock.advance(LEASE_S + 1)
    [third] = await side.store.claim(5)

    assert (first.expired, list(second), third.expired) == (False, [], True)
    assert not await side.store.renew(first)
    assert not await side.store.release(first, DONE)
    assert await side.store.renew(third)


async def test_a_mark_during_a_pass_keeps_the_item_due(side: Side) -> None:
    await side.register("a", "t", "bank")
    [claimed] = await side.store.claim(1)

    await mark(side, "a", offset=3)
    await side.store.release(claimed, DONE)

    [again] = await side.store.claim(1)
    assert (again.generation, again.lane, again.cause.kind) == (claimed.generation + 1, Lane.WEBHOOK, "webhook")


async def test_an_item_waits_for_the_follower_to_read_its_append(side: Side) -> None:
    await side.register("a", "t", "bank")
    [claimed] = await side.store.claim(1)
    await side.store.release(claimed, Released(outcome="appended", done=True, due_in_s=0.0, wait_offset=7))

    await side.read(7)
    before = await side.store.claim(1)
    await side.read(8)
    after = await side.store.claim(1)

    assert (len(before), len(after)) == (0, 1)


async def test_what_is_let_go_waits_and_what_expires_is_claimed_as_expired(side: Side) -> None:
    await side.register("a", "t", "bank")
    [claimed] = await side.store.claim(1)

    await side.store.expire(claimed)
    [expired] = await side.store.claim(1)
    await side.store.release_untouched(expired, wait_offset=2)

    assert expired.expired
    assert list(await side.store.claim(1)) == []
    await side.read(3)
    [freed] = await side.store.claim(1)
    assert not freed.expired


async def test_a_webhook_overtakes_a_backfill_until_that_has_waited(side: Side) -> None:
    await side.register("old", "t", "bank")
    side.clock.advance(10)
    await side.register("new", "t", "bank")
    await mark(side, "new", offset=1)

    [webhook] = await side.store.claim(1)
    await side.store.release(webhook, DONE)
    side.clock.advance(46)
    await mark(side, "new", offset=2)
    claims = await side.store.claim(2)

    assert webhook.item_id == "new"
    assert {claimed.item_id for claimed in claims} == {"old", "new"}


async def test_a_repeat_is_known_and_a_transaction_that_fails_leaves_nothing(side: Side) -> None:
    await side.register("a", "t", "bank")

    first = await mark(side, "a", offset=1, key=b"k")
    second = await mark(side, "a", offset=2, key=b"k")
    with pytest.raises(ZeroDivisionError):
        await mark_and_fail(side, "a")

    assert (first, second) == ({b"k"}, set())
    async with side.marking({0}) as begun:
        await begun.new_keys([])
        assert begun.positions[0].next == 3
    assert (await side.row("a"))["generation"] == 2


async def test_a_hint_comes_with_the_claim_until_it_is_dealt_with(side: Side) -> None:
    await side.register("a", "t", "bank")
    await mark(side, "a", offset=4, hint=True)

    [claimed] = await side.store.claim(1)
    await side.store.release(claimed, Released(outcome="unchanged", done=True, due_in_s=0.0, hints_until=4))
    [again] = await side.store.claim(1)

    assert [hint.offset for hint in claimed.hints] == [4]
    assert again.hints == ()


async def test_a_quarantined_item_is_passed_over_but_for_its_unlink(side: Side) -> None:
    await side.register("a", "t", "bank")
    [claimed] = await side.store.claim(1)
    await side.store.quarantine(claimed, "broken")
    await side.store.release(claimed, Released(outcome="failed", done=True, stopped="quarantined", due_in_s=0.0))

    quarantined = await side.store.claim(1)
    await side.ask("a", Lane.WEBHOOK, True)
    side.clock.advance(61)
    [unlink] = await side.store.claim(1)
    await side.store.finish_unlink(unlink)
    side.clock.advance(61)

    assert list(quarantined) == []
    assert unlink.unlink_requested
    assert list(await side.store.claim(1)) == []
    assert (await side.row("a"))["stopped"] == "unlinked"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("metered", [False, True])
async def test_the_same_operations_leave_the_same_rows(seed: int, metered: bool, pool: asyncpg.Pool) -> None:
    sides = [memory(metered=metered), postgres(pool, metered=metered)]
    rng = random.Random(seed)
    items = [f"item-{number}" for number in range(8)]
    held: list[list[Claimed]] = []
    for number, item_id in enumerate(items):
        for side in sides:
            await side.register(item_id, f"tenant-{number % 3}", f"bank-{number % 2}")
            side.clock.advance(0.5)

    for step in range(STEPS):
        act = rng.choice(("claim", "claim", "mark", "mark", "ask", "release", "release", "expire", "time", "read"))
        arguments = rng.random(), rng.choice(items)
        said = [await _act(side, act, step, arguments, held, place) for place, side in enumerate(sides)]
        if act == "claim":
            claimed = [list(claims) for claims in said]
            assert [_shown(one) for one in claimed[0]] == [_shown(one) for one in claimed[1]], f"step {step}"
            held += [list(pair) for pair in zip(*claimed, strict=True)]
        elif act in ("release", "expire") and held:
            held.pop(int(arguments[0] * len(held)))
            assert said[0] == said[1], f"step {step}: {act}"
        for item_id in items:
            assert await sides[0].row(item_id) == await sides[1].row(item_id), f"step {step}: {act} {item_id}"


async def _act(
    side: Side, act: str, step: int, arguments: tuple[float, str], held: list[list[Claimed]], place: int
) -> Any:
    share, item_id = arguments
    if act == "claim":
        return await side.store.claim(1 + int(share * 4))
    if act == "mark":
        return await mark(side, item_id, offset=step, hint=share < 0.3)
    if act == "ask":
        return await side.ask(item_id, Lane.MANUAL, share < 0.1)
    if act == "time":
        return side.clock.advance(round(share * 25, 3))
    if act == "read":
        return await side.read(step)
    if not held:
        return None
    claimed = held[int(share * len(held))][place]
    if act == "expire":
        return await side.store.expire(claimed)
    due_in_s = None if share < 0.5 else round(share * 20, 1)
    not_before_s = 8.0 if 0.5 < share < 0.6 else None
    return await side.store.release(
        claimed,
        Released(
            outcome="unchanged",
            done=share < 0.7,
            synced=share < 0.7,
            due_in_s=due_in_s,
            not_before_s=not_before_s,
            attempts=int(share * 3),
            accounts_read=share < 0.3,
            wait_offset=step if share < 0.4 else None,
        ),
    )


def _shown(claimed: Claimed) -> tuple[object, ...]:
    return (
        claimed.item_id,
        claimed.tenant,
        claimed.generation,
        claimed.lane,
        claimed.expired,
        claimed.cause,
        claimed.unlink_requested,
        claimed.accounts_wanted,
        claimed.accounts_at,
        claimed.attempts,
        claimed.hints,
        claimed.bank_failing,
    )
