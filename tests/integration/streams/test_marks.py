"""What marks do, and the transactions of mark_due and follow_heads, on a real Postgres."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest

from runtime.kafka.reader import Position, Received
from runtime.retry import retry_until_done
from runtime.scheduler import enqueue
from runtime.scheduler.types import Lane, Mark
from schemas.encoding import codec
from schemas.errors import Halt
from schemas.log import changesets, gate
from schemas.log.records import Cause, Head, Webhook
from streams.follow_heads import FollowHeads
from streams.heads import HeadChanges
from streams.mark_due import MarkDue
from streams.storage.consumer_transactions import following, marking
from tests.support.streams_desk import BEGIN, USER, Desk

BODY = b'{"webhook_type":"TRANSACTIONS","webhook_code":"SYNC_UPDATES_AVAILABLE","item_id":"item"}'
KEYS = changesets.user_keys(bytes(32), 1)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    """Connections to the desk's database, as a stage has them."""

    async def nothing_to_reset(_: object) -> None:
        """As in the product: asyncpg's own reset is a round trip."""

    async with asyncpg.create_pool(database, min_size=1, max_size=4, reset=nothing_to_reset) as opened:
        yield opened


@asynccontextmanager
async def noted(pool: asyncpg.Pool) -> AsyncIterator[list[str]]:
    """What is asked of Postgres meanwhile, one entry a round trip."""
    asked: list[str] = []

    def note(query: Any) -> None:
        asked.append(query.query)

    async with pool.acquire() as connection:
        connection.add_query_logger(note)
    try:
        yield asked
    finally:
        async with pool.acquire() as connection:
            connection.remove_query_logger(note)


def webhook(offset: int, *, body: bytes = BODY, partition: int = 0) -> Received:
    """A webhook of the log, each with a signature of its own."""
    value = codec.encode(Webhook(0, body, os.urandom(32), f"jwt-{partition}-{offset}", "{}"))
    return Received(partition, offset, b"item", value, {}, 0)


def marker(pool: asyncpg.Pool) -> MarkDue:
    """The agent without its reader."""
    return MarkDue(None, partial(marking, pool), on_commit=lambda: None)  # type: ignore[arg-type]


def record(offset: int, type_: str, *, parent: bytes | None, **fields: Any) -> tuple[bytes, Received]:
    """A changeset of the Item, with its id."""
    id_ = os.urandom(16)
    given: dict[str, Any] = {
        "id": id_,
        "kind": gate.CHAINED,
        "type": type_,
        "parent": parent,
        "item_id": "item",
        "user": USER,
        "at": 1_000_000,
        "cause": Cause("webhook"),
        "key_generation": 1,
    }
    value = changesets.seal(Head(**(given | fields)), codec.encode_events([]), KEYS, nonce=bytes(12))
    return id_, Received(0, offset, b"", value, {}, 0)


async def test_a_manual_mark_ends_a_wait_of_hours_and_not_a_limit(desk: Desk) -> None:
    await desk.register("item")
    [claimed] = await desk.claim()
    await desk.release(claimed, outcome="failed", done=False, due_in_s=7200, not_before_s=60, attempts=6)

    waits_s = await desk.ready_in()
    await enqueue.mark_manual(desk.connection, "item", by="someone")

    assert (waits_s, await desk.ready_in()) == (7200, 60)


async def test_a_refresh_is_wanted_until_a_pass_has_asked_for_it(desk: Desk) -> None:
    await desk.register("item")
    [first] = await desk.claim()

    await enqueue.mark_manual(desk.connection, "item", refresh=True)
    await desk.release(first, refreshed=True)
    [second] = await desk.claim()
    await desk.release(second, refreshed=True)

    assert (first.refresh_wanted, second.refresh_wanted) == (False, True)
    assert not (await desk.row())["refresh_wanted"]


async def test_accounts_asked_for_during_a_run_are_read_by_the_next_one(desk: Desk) -> None:
    await desk.register("item")
    [first] = await desk.claim()

    await desk.mark(accounts=True)
    await desk.release(first, accounts_read=True)
    [second] = await desk.claim()
    await desk.release(second, accounts_read=True)

    assert (first.accounts_wanted, second.accounts_wanted) == (True, True)
    assert not (await desk.row())["accounts_wanted"]


async def test_an_unlink_waits_for_no_limit_and_no_bank(desk: Desk) -> None:
    await desk.register("item")
    [claimed] = await desk.claim()
    await desk.release(claimed, outcome="failed", done=False, due_in_s=3600, not_before_s=3600, attempts=1)

    before = await desk.claimed()
    await enqueue.request_unlink(desk.connection, "item")

    assert (before, await desk.claimed()) == ([], ["item"])


async def test_a_sweep_marks_behind_webhooks_and_pushes_no_webhook_back(desk: Desk) -> None:
    await desk.lay("idle", lane=Lane.BACKFILL)
    await desk.lay("marked", lane=Lane.WEBHOOK)
    await desk.connection.execute("UPDATE tartan.sync_state SET due_at = NULL WHERE item_id = 'idle'")

    marked = await enqueue.mark_sweep(desk.connection, ["idle", "marked", "unknown"])
    first, second = await desk.claim()

    assert marked == 2
    assert (first.item_id, first.lane, first.cause.kind) == ("marked", Lane.WEBHOOK, "sweep")
    assert (second.item_id, second.lane, second.cause.kind) == ("idle", Lane.SCHEDULE, "sweep")


async def test_the_schedule_marks_the_longest_unseen_first_and_each_item_once(desk: Desk) -> None:
    for number in range(6):
        await desk.register(f"item-{number}")
        await desk.connection.execute(
            "UPDATE tartan.sync_state SET due_at = NULL, last_synced_at = $2 WHERE item_id = $1",
            f"item-{number}",
            desk.now - timedelta(hours=number + 1),
        )
    await desk.connection.execute("UPDATE tartan.sync_state SET last_synced_at = NULL WHERE item_id = 'item-0'")
    await desk.wait(1000)

    async def tick() -> set[str]:
        await enqueue.mark_scheduled(desk.connection, interval_s=900, recheck_s=900, spread_s=0, items_max=2)
        rows = await desk.connection.fetch("SELECT item_id FROM tartan.sync_state WHERE due_at IS NOT NULL")
        return {row["item_id"] for row in rows}

    ticks = [await tick() for _ in range(4)]

    assert ticks[0] == {"item-0", "item-5"}
    assert ticks[1] == ticks[0] | {"item-4", "item-3"}
    assert ticks[2] == ticks[3] == {f"item-{number}" for number in range(6)}


async def test_an_item_that_waits_for_its_user_is_asked_about_and_one_that_is_gone_is_not(desk: Desk) -> None:
    for item_id, stopped in [("waiting", "login_required"), ("gone", "gone")]:
        await desk.register(item_id)
        await desk.connection.execute(
            "UPDATE tartan.sync_state SET due_at = NULL, stopped = $2, last_attempt_at = $3, last_synced_at = $4 "
            "WHERE item_id = $1",
            item_id,
            stopped,
            desk.now - timedelta(days=1, seconds=1),
            desk.now - timedelta(days=9),
        )

    marked = await enqueue.mark_scheduled(desk.connection, interval_s=900, recheck_s=86400, spread_s=0, items_max=100)

    assert (marked, await desk.claimed()) == (1, ["waiting"])


async def test_a_batch_of_webhooks_is_four_round_trips(desk: Desk, pool: asyncpg.Pool) -> None:
    await desk.register("item")
    agent = marker(pool)
    await agent.process([webhook(0)])

    async with noted(pool) as asked:
        await agent.process([webhook(1), webhook(2)])

    assert len(asked) == 4
    assert (await desk.row())["generation"] == 3


async def test_a_batch_of_changesets_is_four_round_trips(desk: Desk, pool: asyncpg.Pool) -> None:
    await desk.register("item")
    erased: list[int] = []
    begin = partial(following, pool)
    agent = FollowHeads(None, begin, on_commit=lambda: None, on_erased=erased.append)  # type: ignore[arg-type]
    root, first = record(0, gate.LINK, parent=None, item_state="active", fingerprints={"a": b"1"})
    second_id, second = record(1, gate.SYNC, parent=root, next_cursor="c1", hints_until=7)
    await agent.process([first])
    await desk.connection.execute(
        "INSERT INTO tartan.hints (item_id, webhook_offset, webhook_partition, code, received_at) "
        "VALUES ('item', 7, 1, 'ERROR', now()), ('item', 8, 1, 'ERROR', now())"
    )

    async with noted(pool) as asked:
        await agent.process([second])

    assert len(asked) == 4
    head = await pool.fetchrow("SELECT head, cursor, head_offset, fingerprints FROM tartan.heads")
    assert tuple(head) == (second_id, "c1", 1, '{"a": "31"}')
    assert [row["webhook_offset"] for row in await pool.fetch("SELECT webhook_offset FROM tartan.hints")] == [8]
    assert await pool.fetchval("SELECT position FROM tartan.positions WHERE reader = 'follow_heads'") == 2


async def test_an_erasure_leaves_a_user_in_no_table_but_the_keys_tombstone(desk: Desk, pool: asyncpg.Pool) -> None:
    await desk.register("item")
    await pool.execute(
        "INSERT INTO tartan.user_keys (user_number, generation, wrapped, state) VALUES ($1, 1, '\\x00', 'active')", USER
    )
    await pool.execute(
        "INSERT INTO tartan.reconciliations (item_id, account_id, user_number) VALUES ('item', 'a', $1)", USER
    )
    await pool.execute(
        "INSERT INTO tartan.discrepancies (item_id, account_id, user_number, cause, against, gap, repair) "
        "VALUES ('item', 'a', $1, 'unknown', 'bank', 1, 'ask')",
        USER,
    )
    begin = partial(following, pool)
    agent = FollowHeads(None, begin, on_commit=lambda: None, on_erased=lambda _: None)  # type: ignore[arg-type]
    await agent.process([record(0, gate.LINK, parent=None, item_state="active")[1]])

    async with begin([0]) as transaction:
        await transaction.apply(HeadChanges(erased=[USER]))

    tables = await pool.fetchval(
        "SELECT array_agg(DISTINCT table_schema || '.' || table_name) FROM information_schema.columns"
        " WHERE table_schema = 'tartan' AND column_name = 'user_number'"
    )
    left_rows = {
        table
        for table in tables
        if await pool.fetchval(f"SELECT EXISTS (SELECT FROM {table} WHERE user_number = {USER})")
    }
    assert left_rows == {"tartan.user_keys"}
    assert len(tables) >= 7


async def test_an_erased_user_is_known_with_and_without_a_head(desk: Desk, pool: asyncpg.Pool) -> None:
    await pool.execute(
        "INSERT INTO tartan.user_keys (user_number, generation, wrapped, state) "
        "VALUES (1, 1, NULL, 'destroyed'), (2, 1, NULL, 'destroyed'), (3, 1, '\\x00', 'active')"
    )
    for item_id, user in [("gone", 1), ("here", 3)]:
        await pool.execute(
            "INSERT INTO tartan.heads (item_id, user_number, partition, head, head_offset, head_at) "
            "VALUES ($1, $2, 0, '\\x00', 0, now())",
            item_id,
            user,
        )

    async with following(pool, {0}) as transaction:
        await transaction.heads({"gone", "here"})
        erased_users = await transaction.erased({1, 2, 3, 4})

    assert erased_users == {1, 2}


async def test_a_batch_that_comes_again_changes_nothing(desk: Desk, pool: asyncpg.Pool) -> None:
    await desk.register("item")
    agent = marker(pool)
    records = [webhook(0), webhook(1)]
    await agent.process(records)
    before = await desk.row()

    await agent.process(records)
    await agent.process([*records, webhook(2)])

    assert (await desk.row())["generation"] == before["generation"] + 1


async def test_a_failure_before_the_commit_leaves_neither_keys_nor_marks_nor_a_position(
    desk: Desk, pool: asyncpg.Pool
) -> None:
    await desk.register("item")

    with pytest.raises(Halt, match="a gap"):
        await marker(pool).process([webhook(0), webhook(2)])
    await asyncio.wait({died := asyncio.create_task(_die_before_the_commit(pool))})

    assert isinstance(died.exception(), ZeroDivisionError)
    assert (await desk.row())["generation"] == 1
    assert await pool.fetchval("SELECT count(*) FROM tartan.repeats") == 0
    assert await pool.fetchval("SELECT coalesce(max(position), 0) FROM tartan.positions") == 0


async def _die_before_the_commit(pool: asyncpg.Pool) -> None:
    async with marking(pool, {0}) as transaction:
        await transaction.new_keys([b"key"])
        await transaction.advance({0: Position(9, b"")})
        await transaction.mark([Mark("item", Cause("webhook"), BEGIN)], [])
        raise ZeroDivisionError


async def test_positions_move_where_nothing_else_is_written(desk: Desk, pool: asyncpg.Pool) -> None:
    await marker(pool).process([webhook(0, body=b"[]")])

    assert await pool.fetchval("SELECT position FROM tartan.positions WHERE reader = 'mark_due'") == 1


async def test_of_two_that_begin_a_partition_at_once_one_waits_for_the_other(desk: Desk, pool: asyncpg.Pool) -> None:
    await desk.register("item")
    records = [webhook(0), webhook(1)]

    agent = marker(pool)
    await asyncio.gather(*(retry_until_done(lambda: agent.process(records), action="test") for _ in range(3)))

    assert (await desk.row())["generation"] == 2
    assert await pool.fetchval("SELECT position FROM tartan.positions WHERE reader = 'mark_due'") == 2
