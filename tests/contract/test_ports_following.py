"""The port Following: memory and Postgres keep the same promises; the same batches leave the same heads and rows."""

import random
from datetime import timedelta

import asyncpg
import pytest

from runtime.kafka.reader import Position
from runtime.scheduler.types import KnownHead, Released
from streams.heads import HeadChanges, ItemHead
from tests.support.scheduler_sides import LEASE_S, START, USER, Side, memory, postgres

BATCHES = 40


def head(number: int, *, hints_until: int | None = None) -> ItemHead:
    known = KnownHead(
        id=number.to_bytes(16, "big"),
        offset=number,
        at=START + timedelta(seconds=number),
        unlinked=False,
        cursor=f"cursor-{number}",
        state="healthy",
        code=None,
        history_status=None,
        fingerprints={"account": bytes([number % 256])},
    )
    return ItemHead(USER, 0, known, hints_until)


async def follow(side: Side, followed: HeadChanges, *, at: int) -> None:
    async with side.following({0}) as begun:
        await begun.heads(set(followed.heads) | {"a"})
        await begun.erased({USER})
        await begun.advance({0: Position(at, b"c")})
        await begun.apply(followed)


async def follow_and_fail(side: Side, followed: HeadChanges) -> None:
    async with side.following({0}) as begun:
        await begun.heads({"a"})
        await begun.apply(followed)
        await begun.advance({0: Position(99 // 0)})


async def known(side: Side, *items: str) -> tuple[dict[str, ItemHead], int]:
    async with side.following({0}) as begun:
        return await begun.heads(items), begun.positions[0].next


async def test_heads_and_the_position_are_written_together_and_come_with_the_claim(side: Side) -> None:
    await side.register("a", "t", "bank")

    await follow(side, HeadChanges(heads={"a": head(7)}), at=8)

    assert await known(side, "a", "other") == ({"a": head(7)}, 8)
    [claimed] = await side.store.claim(1)
    assert claimed.head == head(7).head


async def test_a_batch_that_fails_leaves_neither_heads_nor_position(side: Side) -> None:
    await side.register("a", "t", "bank")
    await follow(side, HeadChanges(heads={"a": head(1)}), at=2)

    with pytest.raises(ZeroDivisionError):
        await follow_and_fail(side, HeadChanges(heads={"a": head(9)}))

    assert await known(side, "a") == ({"a": head(1)}, 2)


async def test_that_a_history_lacked_an_account_is_known_until_a_whole_one_is_read(side: Side) -> None:
    """Also to a claim behind a pass that appended and never gave its Item back."""
    await side.register("a", "t", "bank")
    known: list[bool] = []

    for offset, said in enumerate(({"a": True}, {}, {"a": False, "unknown": True}, {})):
        [claimed] = await side.store.claim(1)
        known.append(claimed.history_incomplete)
        await follow(side, HeadChanges(histories=said), at=offset + 1)
        side.clock.advance(LEASE_S + 1)

    assert known == [False, True, True, False]


async def test_an_item_whose_record_was_skipped_is_due_again(side: Side) -> None:
    await side.register("a", "t", "bank")
    [claimed] = await side.store.claim(1)
    await side.store.release(claimed, Released(outcome="unchanged", done=True, synced=True))

    await follow(side, HeadChanges(again={"a", "unknown"}), at=1)

    [again] = await side.store.claim(1)
    assert (again.generation, again.cause.kind) == (claimed.generation + 1, "retry")


async def test_a_redrive_frees_what_streams_set_aside(side: Side) -> None:
    await side.register("a", "t", "bank")
    [claimed] = await side.store.claim(1)
    await side.store.quarantine(claimed, "broken")
    await side.store.release(claimed, Released(outcome="failed", done=True, stopped="quarantined", not_before_s=600.0))
    quarantined = list(await side.store.claim(1))

    await follow(side, HeadChanges(redriven={"a": 5}), at=6)

    [freed] = await side.store.claim(1)
    assert quarantined == []
    assert freed.item_id == "a"
    assert (await side.row("a"))["stopped"] is None


async def test_an_erased_user_is_known_to_be_and_has_no_items(side: Side) -> None:
    await side.register("a", "t", "bank")
    await follow(side, HeadChanges(heads={"a": head(1)}), at=2)

    await follow(side, HeadChanges(erased=[USER]), at=3)

    assert list(await side.store.claim(1)) == []
    assert await known(side, "a") == ({}, 3)


@pytest.mark.parametrize("seed", range(3))
async def test_the_same_batches_leave_the_same_heads_and_rows(seed: int, pool: asyncpg.Pool) -> None:
    sides = [memory(metered=False), postgres(pool, metered=False)]
    rng = random.Random(seed)
    items = [f"item-{number}" for number in range(5)]
    for side in sides:
        for item_id in items:
            await side.register(item_id, "t", "bank")

    for number in range(1, BATCHES):
        followed = HeadChanges(
            heads={item_id: head(number) for item_id in rng.sample(items, rng.randint(0, 3))},
            again=set(rng.sample(items, rng.randint(0, 2))),
            redriven=dict.fromkeys(rng.sample(items, rng.choice((0, 0, 1))), number),
            histories=dict.fromkeys(rng.sample(items, rng.choice((0, 0, 2))), rng.random() < 0.5),
        )
        claims = rng.randint(0, 2)
        for side in sides:
            for claimed in await side.store.claim(claims):
                if claimed.generation % 3 == 0:
                    await side.store.quarantine(claimed, "broken")
                await side.store.release(claimed, Released(outcome="unchanged", done=True, synced=True))
            await follow(side, followed, at=number)
            side.clock.advance(1.0)

        assert await known(sides[0], *items) == await known(sides[1], *items), f"batch {number}"
        for item_id in items:
            assert await sides[0].row(item_id) == await sides[1].row(item_id), f"batch {number}: {item_id}"
