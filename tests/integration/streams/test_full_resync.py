"""A lost cursor, on a real Kafka and Postgres: the history is read again and appended as one record."""

from datetime import UTC, datetime, timedelta

import pytest

from runtime.scheduler import enqueue
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.control import failure_modes
from schemas.events import HISTORY_RESTATED, TRANSACTION_ADDED
from schemas.log import gate
from schemas.log.records import History
from streams.sync import backoff
from tests.support.streams_world import Held, World, streams

COMPLETE = "HISTORICAL_UPDATE_COMPLETE"


async def test_a_restated_history_names_what_there_is_and_the_window_in_which_the_rest_is_gone(
    stage_world: World,
) -> None:
    item = stage_world.bank.create_item("user", transactions=400)

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        before = await stage_world.assert_true(item)
        failure_modes.refuse_cursors(item)
        failure_modes.remove_rows(stage_world.bank, item, 7)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)
        stage_world.bank.step(item.item_id, changes=5)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        later = await stage_world.assert_true(item)

    restated = item_view.records[-1]
    assert len(before.transactions) == 400
    assert (restated.head.type, restated.head.counts[TRANSACTION_ADDED]) == (gate.RESTATED, 393)
    assert (restated.head.parent, restated.head.history_status) == (before.records[-1].head.id, COMPLETE)
    assert restated.head.base_cursor != restated.head.next_cursor
    covered = _covered(item_view)
    # The default of 730 days begins before the oldest of the simulator's 90; midnight may lie between both looks.
    begins = datetime.now(UTC).date() - timedelta(days=730)
    assert covered.since in {begins.isoformat(), (begins - timedelta(days=1)).isoformat()}
    assert (covered.until, covered.complete, covered.removals_permille_max) == (None, True, 200)
    assert covered.account_ids == sorted(account.account_id for account in item.accounts.values() if account.is_listed)
    assert [record.head.type for record in later.records[len(item_view.records) :]] == [gate.SYNC]
    # Right after the history the new cursor is tried.
    assert await stage_world.attempts(item) == ["appended", "appended", "unchanged", "appended"]
    assert (await stage_world.row(item))["attempts"] == 0


async def test_nothing_is_appended_before_plaid_has_read_the_history_again(stage_world: World) -> None:
    item = stage_world.bank.create_item("user", transactions=200)

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        before = await stage_world.view(item)
        failure_modes.refuse_cursors(item)
        failure_modes.remove_rows(stage_world.bank, item, 3)
        # Neither time comes by itself within a test.
        failure_modes.unready_history(stage_world.bank, item, initial_s=3_600, complete_s=3_600)
        await stage_world.webhook(item)
        await stage_world.until(lambda: _passes(stage_world, item, 2), what="a pass while nothing is ready")
        item.reread = "INITIAL_UPDATE_COMPLETE"
        await stage_world.until(lambda: _passes(stage_world, item, 4), what="passes while a part is ready")
        early = await stage_world.view(item)
        item.reread = None
        item.arrangement += 1
        await stage_world.webhook(item, historical_update_complete=True)
        await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)

    assert [record.head.id for record in early.records] == [record.head.id for record in before.records]
    assert (await stage_world.attempts(item))[1:4] == ["not_ready"] * 3
    assert item_view.records[-1].head.type == gate.RESTATED


async def test_of_a_history_without_a_known_account_no_removal_may_be_concluded(stage_world: World) -> None:
    item = stage_world.bank.create_item("user", transactions=200)
    hidden = item.transaction_accounts[0].account_id

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        before = await stage_world.assert_true(item)
        failure_modes.refuse_cursors(item)
        failure_modes.hide_account(item, hidden)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        without = await stage_world.view(item)
        failure_modes.show_account(stage_world.bank, item, hidden)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        await stage_world.assert_true(item)

    covered = _covered(without)
    assert hidden not in covered.account_ids
    assert not covered.complete
    assert covered.incomplete_because is not None
    assert without.transactions == before.transactions


async def test_a_restated_history_larger_than_a_record_says_first_what_it_covers(stage_world: World) -> None:
    item = stage_world.bank.create_item("user", transactions=400)

    async with streams(stage_world, record_bytes_max=8 * 1024):
        await stage_world.register(item)
        await stage_world.settled(item)
        failure_modes.refuse_cursors(item)
        failure_modes.remove_rows(stage_world.bank, item, 7)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)

    last = item_view.records[-1].head
    [first] = [record for record in item_view.records if record.head.id == last.parts[0]]
    assert last.type == gate.RESTATED
    assert len(last.parts) > 1
    assert first.events[0][0] == HISTORY_RESTATED
    assert last.counts[TRANSACTION_ADDED] == 393


async def test_a_bank_that_was_asked_is_read_though_its_webhook_is_lost(
    stage_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = stage_world.bank.create_item("user")
    monkeypatch.setattr(backoff, "REFRESHED_S", 4.0)  # the simulated bank answers after 2 s

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        failure_modes.add_unseen_changes(item, changes=5)
        await stage_world.pool.execute("UPDATE tartan.sync_state SET refresh_wanted = true")
        async with stage_world.pool.acquire() as connection:
            await enqueue.mark_manual(connection, item.item_id)
        await stage_world.until(lambda: _passes(stage_world, item, 2), what="a pass that asks the bank")
        asked = await stage_world.row(item)
        await stage_world.settled(item)
        await stage_world.assert_true(item)
        read = await stage_world.row(item)

    assert await stage_world.attempts(item) == ["appended", "unchanged", "appended"]
    assert asked["refreshed_at"] is not None
    assert not read["refresh_wanted"]
    assert read["bank_observed_at"] > asked["bank_observed_at"]
    assert read["bank_updated_at"] > asked["bank_updated_at"]


def _covered(item_view: Held) -> History:
    """What the last record says that it covers."""
    [history] = [history for kind, history in item_view.records[-1].events if kind == HISTORY_RESTATED]
    assert isinstance(history, History)
    return history


async def _passes(stage_world: World, item: Item, count: int) -> bool:
    return len(await stage_world.attempts(item)) >= count
