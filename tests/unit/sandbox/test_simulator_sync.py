"""The simulator's `/transactions/sync`: pages, cursors and what a reader ends up with."""

import datetime as dt
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.simulator.api.dispatcher import answer
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.sync import fold
from sandbox.simulator.bank.truth import verbatim
from sandbox.simulator.clock import ManualClock
from sandbox.simulator.control.faults import Fault
from sandbox.simulator.options import Options
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from tests.support.sync_reader import Ask, Reader, Refused

START = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
KEYS = {"PLAID-CLIENT-ID": "simulated-client", "PLAID-SECRET": "simulated-secret"}


def make_world(**options: Any) -> SimulatedPlaid:
    chosen: dict[str, Any] = {"rate_limits": "off", "validate_requests": False, **options}
    return SimulatedPlaid(Options(**chosen), ManualClock(START))


def asker(world: SimulatedPlaid) -> Ask:
    def ask(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        answered = answer(world, path, KEYS, json.dumps(body).encode())
        return answered.status, answered.body

    return ask


def reader_of(world: SimulatedPlaid, item: Item, **fields: Any) -> Reader:
    return Reader(asker(world), item.access_token, **fields)


def truth_rows(item: Item) -> dict[str, Any]:
    rows = (json.loads(bytes(raw), parse_float=Decimal) for raw in verbatim(item, version="v2"))
    return {row["transaction_id"]: row for row in rows}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.sampled_from([1, 2, 7, 60, 500]),
    unfolded=st.sampled_from([0.0, 1.0]),
    split=st.sampled_from([0.0, 1.0]),
    rounds=st.lists(st.lists(st.integers(1, 12), max_size=6), min_size=1, max_size=4),
)
def test_a_reader_of_whole_paginations_ends_with_the_truth(
    seed: int, count: int, unfolded: float, split: float, rounds: list[list[int]]
) -> None:
    world = make_world(seed=seed, unfolded_share=unfolded, page_split_share=split, novelty=0.3)
    item = world.create_item("ada", transactions=40)
    reader = reader_of(world, item, count=count)
    reader.pull()

    for steps in rounds:
        for changes in steps:
            world.step(item.item_id, changes=changes)
        reader.pull()

        assert reader.rows == truth_rows(item)
        for account in reader.accounts.values():
            assert account["balances"]["current"] == item.accounts[account["account_id"]].current


def test_a_page_never_holds_an_id_twice() -> None:
    world = make_world(unfolded_share=1.0)
    item = world.create_item("ada", transactions=5)
    reader = reader_of(world, item)
    reader.pull()
    for _ in range(60):
        world.step(item.item_id, changes=3)

    reader.pull()

    ids = [
        [row["transaction_id"] for key in ("added", "modified", "removed") for row in page[key]]
        for page in reader.pages
    ]
    assert len(ids) > 1
    assert all(len(set(page)) == len(page) for page in ids)
    assert len({i for page in ids for i in page}) < sum(map(len, ids)), "no id was told on two pages"


def test_a_pending_row_and_its_successor_can_be_on_different_pages() -> None:
    world = make_world(unfolded_share=0.0, page_split_share=1.0, novelty=0.0)
    item = world.create_item("ada", transactions=60, institution_id="ins_109511")
    reader = reader_of(world, item)
    reader.pull()
    apart = 0

    for _ in range(80):
        world.step(item.item_id, changes=8)
        reader.pull()
        removed_on = {row["transaction_id"]: n for n, page in enumerate(reader.pages) for row in page["removed"]}
        for number, page in enumerate(reader.pages):
            for row in page["added"]:
                at = removed_on.get(row["pending_transaction_id"])
                apart += at is not None and at != number

    assert apart > 0


def test_the_first_history_is_told_as_added_and_never_removed() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=50)
    for _ in range(40):
        world.step(item.item_id, changes=5)

    reader = reader_of(world, item, count=33)
    reader.pull()

    assert all(not page["removed"] and not page["modified"] for page in reader.pages)
    assert reader.rows == truth_rows(item)


def test_a_change_during_pagination_refuses_the_next_page_until_the_loop_restarts() -> None:
    world = make_world(page_split_share=0.0)
    item = world.create_item("ada", transactions=50)
    ask = asker(world)
    first = json.loads(ask("/transactions/sync", {"access_token": item.access_token, "count": 20})[1])
    world.step(item.item_id)

    body = {"access_token": item.access_token, "count": 20, "cursor": first["next_cursor"]}
    refusals = [ask("/transactions/sync", body) for _ in range(2)]

    for status, raw in refusals:
        refusal = json.loads(raw)
        assert status == 400
        assert refusal["error_type"] == "TRANSACTIONS_ERROR"
        assert refusal["error_code"] == "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"
    reader = reader_of(world, item, count=20)
    reader.pull()
    assert reader.rows == truth_rows(item)


def test_a_mutation_can_be_had_on_demand_at_a_page() -> None:
    world = make_world(page_split_share=0.0)
    item = world.create_item("ada", transactions=100)
    world.faults.declare(Fault(code="MUTATION", item_id=item.item_id, page=3))
    reader = reader_of(world, item, count=20)

    pages = reader.pull()

    assert world.requests["/transactions/sync", "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"] == 1
    assert world.requests["/transactions/sync", "OK"] == 2 + pages
    assert reader.rows == truth_rows(item)


def test_an_item_that_is_not_ready_looks_like_a_quiet_account() -> None:
    clock = ManualClock(START)
    world = SimulatedPlaid(Options(rate_limits="off", validate_requests=False), clock)
    item = world.create_item("ada", transactions=80, days=90, ready=False)
    reader = reader_of(world, item)

    reader.pull()
    page = reader.pages[0]

    assert (page["added"], page["modified"], page["removed"], page["accounts"]) == ([], [], [], [])
    assert (page["has_more"], page["next_cursor"], page["transactions_update_status"]) == (False, "", "NOT_READY")

    clock.advance(world.options.initial_update_delay_s)
    world.tasks.run_due()
    reader.pull()
    assert reader.status == "INITIAL_UPDATE_COMPLETE"
    assert all(row["date"] > "2026-04-01" for row in reader.rows.values())

    clock.advance(world.options.historical_update_delay_s)
    world.tasks.run_due()
    reader.pull()
    assert reader.status == "HISTORICAL_UPDATE_COMPLETE"
    assert len(reader.rows) == 80
    assert reader.rows == truth_rows(item)


def test_history_that_arrives_late_does_not_move_the_balance() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=80, days=90, ready=False)
    before = {account.account_id: account.current for account in item.accounts.values()}

    world.become_ready(item)

    assert {account.account_id: account.current for account in item.accounts.values()} == before


def test_a_cursor_of_another_item_is_refused() -> None:
    world = make_world()
    item, other = world.create_item("ada", transactions=5), world.create_item("bob", transactions=5)
    stranger = reader_of(world, other)
    stranger.pull()

    with pytest.raises(Refused) as refusal:
        reader_of(world, item, cursor=stranger.cursor).pull()

    assert refusal.value.code == "INVALID_FIELD"
    assert refusal.value.body["error_message"] == "cursor not associated with access_token"


def test_cursors_that_plaid_gave_up_are_refused_and_the_empty_one_works() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=5)
    reader = reader_of(world, item)
    reader.pull()
    item.cursor_epoch += 1

    with pytest.raises(Refused, match="INVALID_FIELD"):
        reader.pull()

    reader.cursor = ""
    reader.pull()
    assert reader.rows == truth_rows(item)


@pytest.mark.parametrize("cursor", ["!", "AAAA", "bm90IGEgY3Vyc29y", "x" * 256])
def test_nonsense_is_no_cursor(cursor: str) -> None:
    world = make_world()
    reader = reader_of(world, world.create_item("ada", transactions=5), cursor=cursor)

    with pytest.raises(Refused, match="INVALID_FIELD"):
        reader.pull()


def test_a_stream_of_one_account_tells_that_account_alone() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=60)
    account_id = next(iter(item.live.values())).account_id
    reader = reader_of(world, item, options={"account_id": account_id, "include_original_description": True})
    reader.pull()
    for _ in range(10):
        world.step(item.item_id, changes=5)
    reader.pull()

    assert reader.rows == {i: row for i, row in truth_rows(item).items() if row["account_id"] == account_id}
    assert set(reader.accounts) == {account_id}
    with pytest.raises(Refused, match="INVALID_FIELD"):
        reader_of(world, item, cursor=reader.cursor).pull()


def test_the_cursor_now_tells_older_rows_as_added_when_they_change() -> None:
    world = make_world(unfolded_share=1.0)
    item = world.create_item("ada", transactions=60)
    reader = reader_of(world, item, cursor="now")
    reader.pull()
    assert reader.rows == {}
    older = set(item.live)

    for _ in range(30):
        world.step(item.item_id, changes=4)
        reader.pull()

    told = [change.transaction.transaction_id for change in item.log[60:] if change.kind == "modified"]
    assert older & set(told) & set(item.live) <= set(reader.rows)
    assert all(reader.rows[i] == truth_rows(item)[i] for i in reader.rows)


def test_accounts_without_rows_are_not_told_by_sync() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=200, institution_id="ins_109508")
    reader = reader_of(world, item)

    reader.pull()

    shown = json.loads(asker(world)("/accounts/get", {"access_token": item.access_token})[1])["accounts"]
    assert {a["subtype"] for a in shown} - {a["subtype"] for a in reader.accounts.values()} == {"mortgage"}


def test_a_fold_leaves_out_what_came_and_went() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=10)
    before = set(item.live)
    for _ in range(60):
        world.step(item.item_id, changes=4)

    folded = fold(item.log[10:], removals_of_unseen=False)

    ids = [change.transaction.transaction_id for change in folded]
    assert len(set(ids)) == len(ids)
    assert {c.transaction.transaction_id for c in folded if c.kind == "removed"} <= before
    assert {c.transaction.transaction_id for c in folded if c.kind != "removed"} <= set(item.live)
