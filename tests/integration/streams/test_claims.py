"""Marks, claims and leases on a real Postgres."""

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import Any

import asyncpg
import pytest

from runtime.kafka.clients import partition_of
from runtime.kafka.reader import Received
from runtime.scheduler import enqueue, leases, runs
from runtime.scheduler.types import Claimed, Hint, Lane, Mark, Released
from runtime.users.vault import Vault
from schemas.encoding import codec
from schemas.errors import Quarantine
from schemas.log.records import Cause, Webhook
from schemas.topics import user_key
from streams.mark_due import MarkDue
from streams.storage.consumer_transactions import marking

VAULT = Vault(bytes(32))
NOW = datetime(2026, 1, 2, tzinfo=UTC)
PARTITIONS = 12
USER = 4711


async def register(pool: asyncpg.Pool, item_id: str = "item", user: int = USER) -> int:
    """Register an Item, as the gateway does."""
    async with pool.acquire() as connection:
        return await enqueue.register_item(
            connection,
            VAULT,
            item_id=item_id,
            tenant="t",
            user_number=user,
            access_token=f"access-{item_id}",
            institution_id="ins_1",
            institution_name="Bank",
            partitions=PARTITIONS,
        )


async def claim(pool: asyncpg.Pool, slots: int = 10, **options: Any) -> list[Claimed]:
    """Claim what is due."""
    async with pool.acquire() as connection:
        return list(await leases.claim(connection, slots=slots, **({"lease_s": 60.0, "holder": "1"} | options)))


async def release(pool: asyncpg.Pool, claimed: Claimed, **result: Any) -> bool:
    """Give an Item back."""
    given = {"outcome": "unchanged", "done": True} | result
    async with pool.acquire() as connection:
        return await leases.release(connection, claimed, Released(**given))


async def mark(pool: asyncpg.Pool, item_id: str = "item", **fields: Any) -> int:
    """Mark an Item as a webhook does."""
    async with pool.acquire() as connection:
        return await enqueue.mark_webhooks(
            connection, [Mark(item_id, Cause("webhook", 1, 2, 3), fields.pop("received_at", NOW), **fields)]
        )


async def row(pool: asyncpg.Pool, item_id: str = "item") -> asyncpg.Record:
    """The Item's row."""
    [item_row] = await pool.fetch("SELECT * FROM tartan.sync_state WHERE item_id = $1", item_id)
    return item_row


async def follow(pool: asyncpg.Pool, position: int, user: int = USER) -> None:
    """Say how far follow_heads has come in the user's partition."""
    await pool.execute(
        "INSERT INTO tartan.positions (reader, partition, position) VALUES ('follow_heads', $1, $2) "
        "ON CONFLICT (reader, partition) DO UPDATE SET position = excluded.position",
        partition_of(user_key(user), PARTITIONS),
        position,
    )


async def test_a_registered_item_is_claimed_at_once_with_all_that_a_pass_needs(pool: asyncpg.Pool) -> None:
    generation = await register(pool)

    [claimed] = await claim(pool)

    assert (claimed.item_id, claimed.user, claimed.generation, claimed.lane) == ("item", USER, generation, 3)
    assert claimed.partition == partition_of(user_key(USER), PARTITIONS)
    assert VAULT.open_token(claimed.sealed_token or b"", item_id="item") == "access-item"
    assert (claimed.cause.kind, claimed.head, claimed.hints, claimed.expired) == ("link", None, (), False)
    assert claimed.accounts_wanted


async def test_a_claimed_item_is_not_claimed_again_before_its_lease_ends(pool: asyncpg.Pool) -> None:
    await register(pool)

    first = await claim(pool)
    second = await claim(pool)

    assert (len(first), second) == (1, [])


async def test_many_claimers_at_once_never_hold_one_item_twice(pool: asyncpg.Pool) -> None:
    for number in range(40):
        await register(pool, f"item-{number}", USER + number)

    rounds = await asyncio.gather(*(claim(pool, slots=7) for _ in range(8)))

    items = [claimed.item_id for claims in rounds for claimed in claims]
    assert len(items) == len(set(items)) == 40


async def test_a_mark_during_a_pass_causes_one_more_and_many_marks_no_more_than_that(pool: asyncpg.Pool) -> None:
    await register(pool)
    [claimed] = await claim(pool)

    for _ in range(5):
        await mark(pool)
    assert await release(pool, claimed)

    [again] = await claim(pool)
    assert (again.cause.kind, again.lane) == ("webhook", Lane.WEBHOOK)
    await release(pool, again)
    assert await claim(pool) == []


async def test_a_lost_lease_is_noticed_and_the_next_claim_says_that_it_expired(pool: asyncpg.Pool) -> None:
    await register(pool)
    [lost] = await claim(pool, lease_s=0.0)

    [item_row] = await claim(pool)

    assert item_row.expired
    async with pool.acquire() as connection:
        assert not await leases.renew(connection, lost, lease_s=60)
        assert await leases.renew(connection, item_row, lease_s=60)
        assert not await leases.release_untouched(connection, lost, wait_offset=5)
    assert not await release(pool, lost)
    assert (await row(pool))["lease_token"] == item_row.lease


async def test_the_leases_of_a_dead_process_end_when_its_successor_starts(pool: asyncpg.Pool) -> None:
    await register(pool, "first", USER)
    await register(pool, "second", USER)
    mine = await claim(pool, slots=1, holder="1")
    await claim(pool, slots=1, holder="2")

    async with pool.acquire() as connection:
        ended = await leases.expire_all(connection, holder="1")
    [item_row] = await claim(pool)

    assert ended == 1
    assert (item_row.item_id, item_row.expired) == (mine[0].item_id, True)


async def test_an_item_waits_until_the_follower_has_read_its_append(pool: asyncpg.Pool) -> None:
    await register(pool)
    [claimed] = await claim(pool)
    async with pool.acquire() as connection:
        assert await leases.release_untouched(connection, claimed, wait_offset=7)

    waiting = await claim(pool)
    await follow(pool, 7)
    still = await claim(pool)
    await follow(pool, 8)
    [item_row] = await claim(pool)

    assert (waiting, still) == ([], [])
    assert not item_row.expired


async def test_a_quarantined_item_is_passed_over_and_its_unlink_is_not(pool: asyncpg.Pool) -> None:
    await register(pool)
    [claimed] = await claim(pool)
    async with pool.acquire() as connection:
        await leases.quarantine(connection, claimed, reason="too large")
    await release(pool, claimed, stopped="quarantined")
    await mark(pool)

    quarantined = await claim(pool)
    async with pool.acquire() as connection:
        await enqueue.request_unlink(connection, "item")
    [unlink] = await claim(pool)

    assert quarantined == []
    assert unlink.unlink_requested


async def test_a_failure_waits_and_a_limit_waits_whatever_is_marked(pool: asyncpg.Pool) -> None:
    await register(pool)
    [claimed] = await claim(pool)
    await release(pool, claimed, outcome="failed", done=False, due_in_s=3600, attempts=1, error={"code": "X"})

    waiting = await claim(pool)
    await mark(pool)
    [woken] = await claim(pool)
    await release(pool, woken, outcome="failed", done=False, due_in_s=60, not_before_s=60, attempts=2)
    await mark(pool)
    limited = await claim(pool)

    assert (waiting, limited) == ([], [])
    assert woken.attempts == 1


async def test_hints_come_with_the_claim_and_go_with_its_release(pool: asyncpg.Pool) -> None:
    await register(pool)
    async with pool.acquire() as connection:
        await enqueue.mark_webhooks(
            connection,
            [],
            [
                Hint("item", 1, 11, "ERROR", {"error_code": "ITEM_LOGIN_REQUIRED"}, NOW),
                Hint("item", 1, 10, "PENDING_EXPIRATION", {}, NOW),
                Hint("unknown", 1, 12, "ERROR", {}, NOW),
            ],
        )

    [claimed] = await claim(pool)
    await release(pool, claimed, hints_until=10)

    assert [(hint.offset, hint.code) for hint in claimed.hints] == [(10, "PENDING_EXPIRATION"), (11, "ERROR")]
    assert claimed.hints[1].fields == {"error_code": "ITEM_LOGIN_REQUIRED"}
    left = await pool.fetch("SELECT webhook_offset FROM tartan.hints")
    assert [record["webhook_offset"] for record in left] == [11]


async def test_legacy_codes_count_only_before_the_first_history(pool: asyncpg.Pool) -> None:
    await register(pool)
    [claimed] = await claim(pool)
    await release(pool, claimed)
    insert = (
        "INSERT INTO tartan.heads (item_id, user_number, partition, head, head_offset, head_at, cursor) "
        "VALUES ('item', 1, 1, '\\x00', 0, now(), $1)"
    )

    before = await mark(pool, unread_only=True)
    await pool.execute(insert, "cursor")
    after = await mark(pool, unread_only=True)

    assert (before, after) == (1, 0)


async def test_a_stale_webhook_marks_at_most_once_in_ten_minutes(pool: asyncpg.Pool) -> None:
    await register(pool)
    now = datetime.now(UTC)

    marked = [await mark(pool, stale=True, received_at=now) for _ in range(3)]

    assert marked == [1, 0, 0]


async def test_a_repeat_is_known_and_forgotten_after_a_day(pool: asyncpg.Pool) -> None:
    async def new_keys(*keys: bytes) -> set[bytes]:
        async with marking(pool, {1}) as transaction:
            return await transaction.new_keys(keys)

    first = await new_keys(b"a", b"b")
    second = await new_keys(b"b", b"c")
    async with pool.acquire() as connection:
        await connection.execute("UPDATE tartan.repeats SET observed_at = now() - interval '25 hours' WHERE key = 'a'")
        await enqueue.purge(connection)
    third = await new_keys(b"a", b"b")

    assert (first, second, third) == ({b"a", b"b"}, {b"c"}, {b"a"})


async def test_the_schedule_marks_what_has_not_synced_and_leaves_the_stopped(pool: asyncpg.Pool) -> None:
    for number, item in enumerate(["idle", "fresh", "stopped", "busy"]):
        await register(pool, item, USER + number)
    for claimed in await claim(pool):
        stopped = "revoked" if claimed.item_id == "stopped" else None
        if claimed.item_id != "busy":
            await release(pool, claimed, synced=True, stopped=stopped)
    await pool.execute("UPDATE tartan.sync_state SET last_synced_at = now() - interval '1 h' WHERE item_id <> 'fresh'")
    options = {"interval_s": 900.0, "recheck_s": 86400.0, "spread_s": 0.0, "items_max": 100}

    async with pool.acquire() as connection:
        marked = await enqueue.mark_scheduled(connection, **options)
        again = await enqueue.mark_scheduled(connection, **options)
    [claimed] = await claim(pool)

    assert (marked, again) == (1, 0)
    assert (claimed.item_id, claimed.lane, claimed.cause.kind) == ("idle", Lane.SCHEDULE, "schedule")


async def test_the_schedule_is_spread_over_time(pool: asyncpg.Pool) -> None:
    for number in range(20):
        await register(pool, f"item-{number}", USER + number)
    await pool.execute("UPDATE tartan.sync_state SET due_at = NULL, last_synced_at = now() - interval '1 h', lane = 3")

    async with pool.acquire() as connection:
        await enqueue.mark_scheduled(connection, interval_s=900, recheck_s=900, spread_s=600, items_max=100)

    [spread] = await pool.fetch("SELECT count(DISTINCT due_at) AS n, max(due_at) - now() AS far FROM tartan.sync_state")
    assert spread["n"] > 15
    assert spread["far"].total_seconds() < 600


async def test_a_manual_sync_finds_the_pass_that_dealt_with_it(pool: asyncpg.Pool) -> None:
    await register(pool)
    [claimed] = await claim(pool)
    async with pool.acquire() as connection:
        generation = await enqueue.mark_manual(connection, "item", by="someone")
        assert generation is not None
        await release(pool, claimed)
        before = await runs.since(connection, "item", after=0, generation=generation, limit=5)
        [second] = await claim(pool)
        await release(pool, second, outcome="appended", added=3, wait_offset=9)
        after = await runs.since(connection, "item", after=0, generation=generation, limit=5)
        every = await runs.latest(connection, "item", limit=5)
        unknown = await enqueue.mark_manual(connection, "nobody")

    assert (before, unknown) == ([], None)
    assert [(run.outcome, run.added, run.changeset_offset) for run in after] == [("appended", 3, 9)]
    assert (every[:-1], len(every)) == (after, 2)


async def test_an_unlinked_item_keeps_no_token_and_is_never_due_again(pool: asyncpg.Pool) -> None:
    await register(pool)
    async with pool.acquire() as connection:
        await enqueue.request_unlink(connection, "item")
        [claimed] = await claim(pool)
        await leases.finish_unlink(connection, claimed)
        marked = await mark(pool)
        manual = await enqueue.mark_manual(connection, "item")

    [token] = await pool.fetch("SELECT sealed_token, unlinked_at FROM tartan.credentials")
    assert token["sealed_token"] is None
    assert token["unlinked_at"] is not None
    assert (marked, manual, await claim(pool)) == (0, None, [])
    with pytest.raises(Quarantine):
        await register(pool)


async def test_an_item_of_another_user_is_not_taken_over(pool: asyncpg.Pool) -> None:
    first = await register(pool)
    again = await register(pool)

    assert again > first
    with pytest.raises(Quarantine, match="another user"):
        await register(pool, user=USER + 1)


async def test_webhooks_that_nothing_can_be_made_of_hold_up_none_behind_them(pool: asyncpg.Pool) -> None:
    registered = await register(pool)
    known = '"item_id":"item","webhook_type":"ITEM","webhook_code":"ERROR"'
    genuine = b'{"webhook_type":"TRANSACTIONS","webhook_code":"SYNC_UPDATES_AVAILABLE","item_id":"item"}'
    bodies = [
        b'{"webhook_type":[],"webhook_code":"X","item_id":"item"}',
        b"[" * 30_000,
        b'{"item_id":"\xff"}',
        b'{"webhook_type":"TRANSACTIONS","webhook_code":"SYNC_UPDATES_AVAILABLE","item_id":"a\\u0000"}',
        b'{"webhook_type":"ITEM","webhook_code":"ERROR","item_id":"a\\u0000"}',
        f'{{{known},"reason":"a\\u0000","account_id":"a","error":{{"error_code":"\\u0000"}}}}'.encode(),
        genuine,
    ]
    values = [b"no record", *(codec.encode(Webhook(0, body, bytes([n]), "jwt", "{}")) for n, body in enumerate(bodies))]
    agent = MarkDue(None, partial(marking, pool), on_commit=lambda: None)  # type: ignore[arg-type]

    for offset, value in enumerate(values):  # each by itself, so that no one's failure is another's
        await agent.process([Received(0, offset, None, value, {}, 0)])

    item_row = await row(pool)
    assert (item_row["generation"], item_row["last_webhook_at"]) == (registered + 2, datetime(1970, 1, 1, tzinfo=UTC))
    assert await pool.fetchval("SELECT fields FROM tartan.hints") == '{"account_id": "a"}'
    assert await pool.fetchval("SELECT position FROM tartan.positions WHERE reader = 'mark_due'") == len(values)
