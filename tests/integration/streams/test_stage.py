"""The whole stage against a simulated Plaid, a real Kafka and a real Postgres."""

import asyncio
import os
import time
from datetime import UTC, datetime

import pytest

from runtime.lifecycle import Running
from runtime.postgres import instance_lock
from runtime.scheduler import enqueue
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.control.faults import Fault
from sandbox.simulator.options import Options
from schemas.encoding import codec
from schemas.errors import Halt
from schemas.events import ACTIVE, ITEM_STATE_CHANGED, LOGIN_REQUIRED, PENDING_DISCONNECT, REFUSED, REVOKED, UNLINKED
from schemas.log import changesets, gate
from schemas.log.gate import Verdict
from schemas.log.records import Cause, Head
from schemas.topics import user_key
from streams.app import stage
from streams.fetch_deltas import FetchDeltas
from tests.support.streams_world import World, streams, world

UPDATES = "SYNC_UPDATES_AVAILABLE"


async def test_a_linked_item_and_its_webhooks_become_changesets_that_tell_the_truth(stage_world: World) -> None:
    item = stage_world.bank.create_item("user", transactions=700)

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        first = await stage_world.assert_true(item)
        for changes in (1, 7):
            stage_world.bank.step(item.item_id, changes=changes)
            await stage_world.webhook(item)
            await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)

    assert [record.head.type for record in first.records] == ["link", "sync"]
    assert item_view.head is not None
    assert (item_view.head.item_state, item_view.head.cause.kind) == (ACTIVE, "webhook")
    assert item_view.head.cause.request_ids
    assert item_view.records[1].head.history_status == "HISTORICAL_UPDATE_COMPLETE"


@pytest.mark.parametrize("fault", ["MUTATION", "HTML", "RESET", "INTERNAL_SERVER_ERROR"])
async def test_a_failure_between_pages_restarts_the_update_and_tears_nothing(stage_world: World, fault: str) -> None:
    item = stage_world.bank.create_item("user", transactions=1_200)
    stage_world.bank.faults.declare(Fault(code=fault, page=2, times=2))

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)

    assert [record.head.type for record in item_view.records] == ["link", "sync"]
    assert stage_world.bank.faults.declared == []
    assert await stage_world.attempts(item) == ["appended"]


async def test_a_webhook_that_lands_during_a_sync_causes_one_more_pass(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")
    stage_world.bank.faults.declare(Fault(code="SLOW", delay_s=1.0))

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.until(lambda: _leased(stage_world), what="a pass under way")
        for _ in range(3):
            await stage_world.webhook(item)
        await stage_world.settled(item)
        stage_world.bank.step(item.item_id)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        await stage_world.assert_true(item)

    assert await stage_world.attempts(item) == ["appended", "unchanged", "appended"]


async def test_a_repeated_webhook_has_no_effect_and_one_that_looks_alike_has(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        number = await stage_world.webhook(item)
        await stage_world.settled(item)
        await stage_world.webhook(item, same_as=number)
        await stage_world.settled(item)
        await stage_world.webhook(item)
        await stage_world.settled(item)

    assert await stage_world.attempts(item) == ["appended", "unchanged", "unchanged"]


async def test_two_genuine_webhooks_of_one_second_are_two_passes(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")
    now = int(time.time())

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        for _ in range(2):
            stage_world.bank.step(item.item_id)
            await stage_world.webhook(item, same_as=now)
            await stage_world.settled(item)
            await stage_world.assert_true(item)

    assert await stage_world.attempts(item) == ["appended", "appended", "appended"]


async def test_what_a_zombie_appends_late_is_skipped_and_the_item_synced_again(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        user = await stage_world.register(item)
        await stage_world.settled(item)
        root, sync = (await stage_world.view(item)).records
        passes = len(await stage_world.attempts(item))
        # Another holder of the lease read the same update from the same head, a moment later.
        await stage_world.append(root.partition, user_key(user), await _sealed(stage_world, sync.head, user))
        await stage_world.until(lambda: _passes(stage_world, item, passes + 1), what="one more pass")
        stage_world.bank.step(item.item_id)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)

    assert [verdict for verdict in item_view.verdicts if verdict is not Verdict.ACCEPTED] == [Verdict.NOT_HEAD]


async def test_a_history_that_is_not_ready_is_no_empty_account(
    kafka_address: str, topic_prefix: str, database: str
) -> None:
    options = Options(rate_limits="off", initial_update_delay_s=5.0, historical_update_delay_s=7.0)

    async with world(kafka_address, topic_prefix, database, options=options) as stage_world, streams(stage_world):
        item = stage_world.bank.create_item("user", ready=False)
        await stage_world.register(item)
        await stage_world.until(lambda: _passes(stage_world, item, 2), what="two passes")
        early = await stage_world.view(item)
        await stage_world.until(lambda: _complete(item), what="the bank's whole history")
        await stage_world.webhook(item, historical_update_complete=True)
        await stage_world.until(lambda: _history(stage_world, item), what="the whole history")
        await stage_world.settled(item)
        await stage_world.assert_true(item)
        outcomes = await stage_world.attempts(item)

    assert [record.head.type for record in early.records] == ["link"]
    assert early.head is not None
    assert early.head.next_cursor is None
    assert outcomes[:2] == ["not_ready", "not_ready"]


async def test_login_required_stops_an_item_and_its_repair_brings_it_back(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        stage_world.bank.break_item(item, "ITEM_LOGIN_REQUIRED", silent=True)
        await stage_world.webhook(item, "ERROR", "ITEM", error={"error_code": "ITEM_LOGIN_REQUIRED"})
        await stage_world.settled(item)
        stopped = await stage_world.row(item)
        broken = await stage_world.view(item)
        stage_world.bank.repair_item(item, silent=True)
        stage_world.bank.step(item.item_id, changes=3)
        await stage_world.webhook(item, "LOGIN_REPAIRED", "ITEM")
        await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)
        # An ERROR that arrives hours after the repair: Plaid itself says otherwise.
        await stage_world.webhook(item, "ERROR", "ITEM", error={"error_code": "ITEM_LOGIN_REQUIRED"})
        await stage_world.settled(item)
        late = await stage_world.view(item)

    assert (stopped["stopped"], stopped["due_at"]) == (LOGIN_REQUIRED, None)
    assert broken.head is not None
    assert (broken.head.type, broken.head.item_state) == ("state", LOGIN_REQUIRED)
    assert item_view.head is not None
    assert (item_view.head.item_state, item_view.head.item_code) == (ACTIVE, None)
    assert (late.head, (await stage_world.row(item))["stopped"]) == (item_view.head, None)
    assert await stage_world.pool.fetch("SELECT FROM tartan.hints") == []


async def test_a_refused_sync_tells_the_state_even_without_a_webhook(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        stage_world.bank.break_item(item, "ITEM_LOGIN_REQUIRED", silent=True)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        item_view = await stage_world.view(item)
        # A manual sync looks whether the user has repaired the login, and tells nothing twice.
        async with stage_world.pool.acquire() as connection:
            await enqueue.mark_manual(connection, item.item_id)
        await stage_world.settled(item)
        again = await stage_world.view(item)

    assert item_view.head is not None
    assert (item_view.head.type, item_view.head.item_code) == ("state", "ITEM_LOGIN_REQUIRED")
    assert len(again.records) == len(item_view.records)
    assert await stage_world.attempts(item) == ["appended", "stopped", "stopped"]


async def test_an_item_that_plaid_never_serves_is_told_and_goes_on_when_somebody_asks(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        stage_world.bank.break_item(item, "ITEM_NOT_SUPPORTED", silent=True)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        refused, row = await stage_world.view(item), await stage_world.row(item)
        stage_world.bank.repair_item(item, silent=True)
        async with stage_world.pool.acquire() as connection:
            await enqueue.mark_manual(connection, item.item_id)
        await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)

    assert refused.head is not None
    assert (refused.head.type, refused.head.item_state, refused.head.item_code) == (
        gate.STATE,
        REFUSED,
        "ITEM_NOT_SUPPORTED",
    )
    assert (row["stopped"], row["due_at"]) == (REFUSED, None)
    assert '"ITEM_NOT_SUPPORTED"' in row["last_error"]
    assert item_view.head is not None
    assert (item_view.head.item_state, (await stage_world.row(item))["stopped"]) == (ACTIVE, None)


async def test_what_plaid_cannot_confirm_is_taken_from_the_webhook(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        await stage_world.webhook(
            item, "PENDING_DISCONNECT", "ITEM", reason="INSTITUTION_MIGRATION", disconnect_time="2030-01-01T00:00:00Z"
        )
        await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)
        stage_world.bank.step(item.item_id)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        later = await stage_world.assert_true(item)

    [(kind, item_record)] = [event for event in item_view.records[-1].events if event[0] == ITEM_STATE_CHANGED]
    assert kind == ITEM_STATE_CHANGED
    assert (item_record.state, item_record.code, item_record.reason, item_record.effective_at) == (
        PENDING_DISCONNECT,
        "PENDING_DISCONNECT",
        "INSTITUTION_MIGRATION",
        "2030-01-01T00:00:00Z",
    )
    assert later.head is not None
    assert later.head.item_state == PENDING_DISCONNECT
    assert (await stage_world.row(item))["stopped"] is None


async def test_a_revoked_permission_stops_the_item_and_erases_nothing(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        stage_world.bank.break_item(item, "USER_PERMISSION_REVOKED", silent=True)
        await stage_world.webhook(item, "USER_PERMISSION_REVOKED", "ITEM")
        await stage_world.settled(item)
        item_view = await stage_world.view(item)

    assert item_view.head is not None
    assert item_view.head.item_state == REVOKED
    assert item_view.transactions
    assert (await stage_world.row(item))["stopped"] == REVOKED


async def test_an_unlinked_item_ends_at_plaid_then_in_the_log_and_only_then_loses_its_token(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        async with stage_world.pool.acquire() as connection:
            await enqueue.request_unlink(connection, item.item_id)
        await stage_world.settled(item)
        item_view = await stage_world.view(item)

    [credentials] = await stage_world.pool.fetch("SELECT sealed_token, unlinked_at FROM tartan.credentials")
    assert item_view.head is not None
    assert (item_view.head.type, item_view.head.item_state) == ("unlink", UNLINKED)
    assert item.removed
    assert credentials["sealed_token"] is None
    assert credentials["unlinked_at"] is not None
    assert (await stage_world.row(item))["stopped"] == UNLINKED


async def test_an_unlink_that_died_after_the_removal_ends_all_the_same(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
    item.removed = True  # /item/remove was answered, and the process died before its append
    async with stage_world.pool.acquire() as connection:
        await enqueue.request_unlink(connection, item.item_id)
    async with streams(stage_world):
        await stage_world.settled(item)

    assert (await stage_world.row(item))["stopped"] == UNLINKED


async def test_a_pass_without_news_appends_nothing(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world, schedule_interval_s=1.0):
        await stage_world.register(item)
        await stage_world.settled(item)
        await stage_world.until(lambda: _passes(stage_world, item, 3), what="two scheduled passes")
        item_view = await stage_world.assert_true(item)

    assert len(item_view.records) == 2
    assert set((await stage_world.attempts(item))[1:]) == {"unchanged"}


async def test_a_balance_that_moved_alone_is_told(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        account = next(iter(item.accounts.values()))
        account.opening += 5
        await stage_world.webhook(item, "NEW_ACCOUNTS_AVAILABLE", "ITEM")
        await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)

    assert item_view.head is not None
    assert item_view.head.item_code == "NEW_ACCOUNTS_AVAILABLE"
    # A clear head names no account: the fingerprints stand under pseudonyms.
    assert len(item_view.head.fingerprints) == len(item.accounts)
    assert not set(item_view.head.fingerprints) & set(item.accounts)


async def test_a_rate_limit_waits_whatever_webhooks_say_and_is_no_failure(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")
    stage_world.bank.faults.declare(Fault(code="RATE_LIMIT"))

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.until(lambda: _passes(stage_world, item, 1), what="a pass")
        await stage_world.webhook(item)
        await stage_world.until(lambda: _marked(stage_world, item, 2), what="the webhook's mark")
        row = await stage_world.row(item)

    assert await stage_world.attempts(item) == ["limited"]
    assert 50 < (row["not_before"] - datetime.now(UTC)).total_seconds() < 120
    assert '"RATE_LIMIT"' in row["last_error"]
    assert row["attempts"] == 0


async def test_an_outage_waits_for_hours_and_a_webhook_ends_the_wait(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        stage_world.bank.faults.declare(Fault(code="INSTITUTION_DOWN"))
        stage_world.bank.step(item.item_id)
        await stage_world.webhook(item)
        await stage_world.until(lambda: _passes(stage_world, item, 2), what="a failed pass")
        failed = await stage_world.row(item)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        await stage_world.assert_true(item)

    assert (failed["due_at"] - datetime.now(UTC)).total_seconds() > 3_000
    assert await stage_world.attempts(item) == ["appended", "failed", "appended"]


async def test_what_a_dead_process_left_is_read_before_anything_is_asked(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")
    user = await stage_world.register(item)
    await stage_world.pool.execute(
        "UPDATE tartan.sync_state SET lease_token = '\\x01', lease_holder = '1', "
        "lease_until = now() + interval '1 hour', last_attempt_at = now()"
    )
    # The dead process's root is in the log, and no one has read it yet.
    root = await _append_root(stage_world, user, item.item_id)

    async with streams(stage_world):
        await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)

    assert item_view.records[0].head.id == root
    assert item_view.verdicts == [Verdict.ACCEPTED, Verdict.ACCEPTED]


async def test_two_processes_share_the_items_and_one_may_restart(stage_world: World) -> None:
    items = [stage_world.bank.create_item(f"user-{number}", transactions=40) for number in range(12)]

    async def news() -> None:
        for item in items:
            stage_world.bank.step(item.item_id)
            await stage_world.webhook(item)

    async with streams(stage_world):
        async with streams(stage_world, instance_id="2"):
            for item in items:
                await stage_world.register(item)
            await stage_world.settled(*items)
            await news()
            await stage_world.settled(*items)
        await news()
        # A static member keeps its partitions while it restarts, so nobody else is disturbed.
        async with streams(stage_world, instance_id="2"):
            await stage_world.settled(*items)
            for item in items:
                item_view = await stage_world.assert_true(item)
                assert set(item_view.verdicts) == {Verdict.ACCEPTED}


async def test_connections_that_postgres_ends_cost_nothing(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world) as running:
        await stage_world.register(item)
        await stage_world.settled(item)
        for _ in range(3):
            await stage_world.pool.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'tartan-streams%'"
            )
            stage_world.bank.step(item.item_id)
            await stage_world.webhook(item)
        await stage_world.settled(item)
        await stage_world.assert_true(item)
        assert running.not_ready() == []


async def test_a_restarted_process_goes_on_where_it_was(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
    stage_world.bank.step(item.item_id)
    await stage_world.webhook(item)
    async with streams(stage_world):
        await stage_world.settled(item)
        await stage_world.assert_true(item)

    assert await stage_world.attempts(item) == ["appended", "appended"]


async def test_another_log_than_the_one_that_was_read_stops_the_process(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")
    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
    await stage_world.pool.execute("UPDATE tartan.positions SET last_checksum = '\\x00' WHERE reader = 'follow_heads'")

    with pytest.raises(Halt, match="another log"):
        async with streams(stage_world) as running:
            await asyncio.wait_for(asyncio.ensure_future(running.ended), 10)


async def test_the_crash_of_an_agent_ends_the_stage(stage_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    item = stage_world.bank.create_item("user")

    async def broken(*_: object, **__: object) -> None:
        raise Halt("on purpose")

    monkeypatch.setattr(FetchDeltas, "fetch", broken)
    async with stage(stage_world.settings) as running:
        await stage_world.register(item)
        with pytest.raises(Halt, match="on purpose"):
            await asyncio.wait_for(asyncio.ensure_future(running.ended), 10)


async def test_two_processes_with_one_instance_id_do_not_run_at_once(
    stage_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_lock, "TAKE_S_MAX", 0.5)

    async with streams(stage_world):
        with pytest.raises(Halt, match="another process"):
            async with streams(stage_world):
                pass


async def test_a_pass_under_way_is_finished_at_a_stop(stage_world: World) -> None:
    item = stage_world.bank.create_item("user")
    stage_world.bank.faults.declare(Fault(code="SLOW", delay_s=1.0))

    async with streams(stage_world) as running:
        await stage_world.until(lambda: _ready(running), what="partitions assigned")
        await stage_world.register(item)
        await stage_world.until(lambda: _leased(stage_world), what="a pass under way")

    assert await stage_world.attempts(item) == ["appended"]
    assert (await stage_world.row(item))["lease_token"] is None


async def _ready(running: Running) -> bool:
    return running.not_ready() == []


async def _leased(stage_world: World) -> bool:
    return bool(await stage_world.pool.fetchval("SELECT count(*) FROM tartan.sync_state WHERE lease_token IS NOT NULL"))


async def _passes(stage_world: World, item: Item, count: int) -> bool:
    return len(await stage_world.attempts(item)) >= count


async def _marked(stage_world: World, item: Item, generation: int) -> bool:
    return (await stage_world.row(item))["generation"] >= generation


async def _complete(item: Item) -> bool:
    return item.phase == "HISTORICAL_UPDATE_COMPLETE"


async def _history(stage_world: World, item: Item) -> bool:
    item_view = await stage_world.view(item)
    return item_view.head is not None and item_view.head.history_status == "HISTORICAL_UPDATE_COMPLETE"


async def _sealed(stage_world: World, head: Head, user: int) -> bytes:
    """A record with this head and no events, sealed under the user's key."""
    async with stage_world.pool.acquire() as connection:
        keys = (await stage_world.keyring.of(connection, [user]))[user]
    assert isinstance(keys, changesets.UserKeys)
    return changesets.seal(head, codec.encode_events([]), keys, nonce=os.urandom(12))


async def _append_root(stage_world: World, user: int, item_id: str) -> bytes:
    head = Head(
        id=os.urandom(16),
        kind=gate.CHAINED,
        type=gate.LINK,
        parent=None,
        item_id=item_id,
        user=user,
        at=1,
        cause=Cause("link"),
        key_generation=1,
        item_state=ACTIVE,
    )
    await stage_world.append(stage_world.partition(user), user_key(user), await _sealed(stage_world, head, user))
    return head.id
