"""What goes wrong with Items and banks: how it looks to a reader, and that the truth stays reachable."""

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.simulator.api.plaid_errors import OUTAGES, PlaidFailure
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.truth import verbatim
from sandbox.simulator.clock import ManualClock
from sandbox.simulator.control import failure_modes
from sandbox.simulator.control.faults import Fault
from sandbox.simulator.inprocess import InProcessPlaid
from sandbox.simulator.options import FaultRates, Options, WebhookRates
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from sandbox.simulator.webhooks.delivery import WebhookFault
from tests.support.sync_reader import Reader, Refused, deliver

START = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
URL = "http://tartan.example/webhooks"
HOUR_S = 3600.0


async def no_sleep(seconds: float) -> None:
    raise AssertionError(f"slept {seconds} s")


def make_bank(**options: Any) -> InProcessPlaid:
    chosen: dict[str, Any] = {"rate_limits": "off", "validate_requests": False, "webhook_url": URL, **options}
    return InProcessPlaid(SimulatedPlaid(Options(**chosen), ManualClock(START)), sleep=no_sleep)


def reader_of(bank: InProcessPlaid, item: Item, **fields: Any) -> Reader:
    def ask(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        answered = bank.answer(path, body)
        return (0, b"{}") if answered.is_broken else (answered.status, answered.body)

    return Reader(ask, item.access_token, **fields)


def truth_rows(item: Item) -> dict[str, Any]:
    rows = (json.loads(bytes(raw), parse_float=Decimal) for raw in verbatim(item, version="v2"))
    return {row["transaction_id"]: row for row in rows}


def after(bank: InProcessPlaid, seconds: float) -> list[tuple[float, str]]:
    """Let time pass, every webhook accepted; give when each came and its code."""
    got: list[tuple[float, str]] = []

    def take(sent: Any) -> int:
        got.append(((sent.at - START).total_seconds(), sent.delivery.webhook.code))
        return 200

    deliver(bank, bank.plaid.clock.now() + dt.timedelta(seconds=seconds), take)
    return got


def said(bank: InProcessPlaid, path: str, item: Item, **body: Any) -> dict[str, Any]:
    answered: dict[str, Any] = json.loads(bank.answer(path, {"access_token": item.access_token, **body}).body)
    return answered


# Cursors


@pytest.mark.parametrize("code", ["INVALID_FIELD", "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"])
def test_lost_cursors_are_refused_for_ever_and_a_history_from_none_gives_good_ones(
    code: failure_modes.CursorRefusal,
) -> None:
    bank = make_bank()
    item = bank.plaid.create_item("ada", transactions=40)
    lost, fresh = reader_of(bank, item), reader_of(bank, item)
    lost.pull()

    failure_modes.refuse_cursors(item, code=code)
    failure_modes.remove_rows(bank.plaid, item, 7)
    for _ in range(3):
        with pytest.raises(Refused) as refusal:
            lost.pull()
        assert refusal.value.code == code
    fresh.pull()
    bank.plaid.step(item.item_id, changes=5)
    fresh.pull()

    assert fresh.rows == truth_rows(item)
    assert all(not page["removed"] for page in fresh.pages[:1])
    assert len(set(lost.rows) - set(fresh.rows)) >= 7, "removals that only a comparison finds"


def test_a_cursor_that_is_lost_in_the_middle_of_its_loop_is_refused_there() -> None:
    bank = make_bank(page_split_share=0.0)
    item = bank.plaid.create_item("ada", transactions=40)
    reader = reader_of(bank, item, count=10)
    first = said(bank, "/transactions/sync", item, count=10)

    failure_modes.refuse_cursors(item)
    refused = said(bank, "/transactions/sync", item, count=10, cursor=first["next_cursor"])
    reader.pull()

    assert refused["error_code"] == "INVALID_FIELD"
    assert reader.rows == truth_rows(item)


# Histories that are read again


def test_a_history_that_is_read_again_is_not_ready_then_recent_then_whole() -> None:
    bank = make_bank(page_split_share=0.0)
    item = bank.plaid.create_item("ada", transactions=200, days=90)
    incremental = reader_of(bank, item)
    incremental.pull()
    again = reader_of(bank, item)

    failure_modes.unready_history(bank.plaid, item, initial_s=30, complete_s=300)
    again.pull()
    early = (again.status, len(again.rows), again.cursor)
    after(bank, 31)
    again.pull()
    recent = (again.status, len(again.rows))
    bank.plaid.step(item.item_id, changes=10)
    incremental.pull()
    told = after(bank, 300)
    again.pull()

    assert early == ("NOT_READY", 0, "")
    assert recent[0] == "INITIAL_UPDATE_COMPLETE"
    assert 0 < recent[1] < 200
    assert "SYNC_UPDATES_AVAILABLE" in {code for _, code in told}
    assert again.status == incremental.status == "HISTORICAL_UPDATE_COMPLETE"
    assert again.rows == incremental.rows == truth_rows(item)


def test_what_is_removed_between_the_recent_part_and_the_whole_is_told() -> None:
    bank = make_bank()
    item = bank.plaid.create_item("ada", transactions=50, days=10)
    reader = reader_of(bank, item)
    failure_modes.unready_history(bank.plaid, item, initial_s=1, complete_s=100)
    after(bank, 2)
    reader.pull()

    failure_modes.remove_rows(bank.plaid, item, 20)
    after(bank, 100)
    reader.pull()

    assert reader.rows == truth_rows(item)


def test_a_pagination_of_the_recent_part_does_not_go_on_into_the_whole() -> None:
    bank = make_bank(page_split_share=0.0)
    item = bank.plaid.create_item("ada", transactions=60, days=60)
    failure_modes.unready_history(bank.plaid, item, initial_s=1, complete_s=100)
    after(bank, 2)
    first = said(bank, "/transactions/sync", item, count=5)

    after(bank, 100)
    second = said(bank, "/transactions/sync", item, count=5, cursor=first["next_cursor"])

    assert second["error_code"] == "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"


# Accounts


def test_a_hidden_account_is_missing_from_every_answer_and_comes_back_with_its_rows() -> None:
    bank = make_bank()
    item = bank.plaid.create_item("ada", institution_id="ins_109508", transactions=100)
    known = reader_of(bank, item)
    known.pull()
    account_id = next(iter(item.live.values())).account_id
    of_it = {key for key, row in item.live.items() if row.account_id == account_id}

    failure_modes.hide_account(item, account_id)
    fresh = reader_of(bank, item)
    fresh.pull()
    bank.plaid.step(item.item_id, changes=20)
    for reader in (known, fresh):
        reader.pull()
    accounts = {account["account_id"] for account in said(bank, "/accounts/get", item)["accounts"]}
    missing = (account_id in accounts, account_id in fresh.accounts, of_it & set(fresh.rows), of_it - set(known.rows))
    failure_modes.show_account(bank.plaid, item, account_id)
    for reader in (known, fresh):
        reader.pull()

    assert missing == (False, False, set(), set())
    assert account_id in {account["account_id"] for account in said(bank, "/accounts/get", item)["accounts"]}
    assert known.rows == fresh.rows == truth_rows(item)
    assert of_it <= set(fresh.rows)


def test_a_pagination_in_which_an_account_is_hidden_is_refused_and_not_torn() -> None:
    bank = make_bank(page_split_share=0.0)
    item = bank.plaid.create_item("ada", institution_id="ins_109508", transactions=100)
    first = said(bank, "/transactions/sync", item, count=10)

    failure_modes.hide_account(item, next(iter(item.live.values())).account_id)
    second = said(bank, "/transactions/sync", item, count=10, cursor=first["next_cursor"])

    assert second["error_code"] == "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"


# Rows


def test_removed_rows_come_back_under_their_own_ids() -> None:
    bank = make_bank()
    item = bank.plaid.create_item("ada", transactions=40)
    reader = reader_of(bank, item)
    reader.pull()
    before = set(reader.rows)

    removed = failure_modes.remove_rows(bank.plaid, item, 10)
    reader.pull()
    without = set(reader.rows)
    returned = failure_modes.return_rows(bank.plaid, item, 100)
    reader.pull()

    posted = {c.transaction.transaction_id for c in removed.changes if not c.transaction.pending}
    assert len(removed.changes) == 10
    assert len(before - without) == 10
    assert {change.transaction.transaction_id for change in returned.changes} == posted
    assert reader.rows == truth_rows(item)
    assert posted <= set(reader.rows)


# What the bank knows and Plaid does not


def test_what_plaid_has_not_seen_comes_with_a_refresh() -> None:
    bank = make_bank()
    item = bank.plaid.create_item("ada", institution_id="ins_109508", transactions=20)
    reader = reader_of(bank, item)
    reader.pull()
    failure_modes.add_unseen_changes(item, changes=6)

    reader.pull()
    unseen = len(item.log)
    said(bank, "/transactions/refresh", item)
    told = after(bank, 60)
    reader.pull()

    assert unseen == 20
    assert len(item.log) >= 26
    assert [code for _, code in told] == ["SYNC_UPDATES_AVAILABLE"]
    assert reader.rows == truth_rows(item)


def test_a_refresh_of_a_bank_that_goes_down_fails_and_item_get_says_so() -> None:
    bank = make_bank()
    item = bank.plaid.create_item("ada", institution_id="ins_109508", transactions=20)
    said(bank, "/transactions/refresh", item)

    bank.plaid.institution_down("ins_109508")
    after(bank, 60)

    status = said(bank, "/item/get", item)["status"]["transactions"]
    assert status["last_failed_update"] == "2026-05-01T12:00:02.000Z"
    assert status["last_successful_update"] == "2026-05-01T12:00:00.000Z"


def test_plaids_own_poll_is_an_update_with_news_or_without() -> None:
    bank = make_bank()
    item = bank.plaid.create_item("ada", transactions=20)
    after(bank, 100)
    bank.plaid.poll(item)
    without = (said(bank, "/item/get", item)["status"]["transactions"]["last_successful_update"], len(item.log))
    failure_modes.add_unseen_changes(item, changes=3)

    bank.plaid.poll(item)

    assert without == ("2026-05-01T12:01:40.000Z", 20)
    assert len(item.log) >= 23


# Banks


@pytest.mark.parametrize("code", sorted(OUTAGES))
def test_a_bank_that_is_down_refuses_for_all_its_items_until_its_time_is_over(code: str) -> None:
    bank = make_bank()
    one, two = (bank.plaid.create_item(name, institution_id="ins_109508", transactions=5) for name in ("ada", "bob"))
    other = bank.plaid.create_item("eve", institution_id="ins_109511", transactions=5)
    asking = ["/transactions/sync", "/accounts/get", "/accounts/balance/get", "/transactions/refresh"]

    bank.plaid.institution_down("ins_109508", code=code, for_s=HOUR_S)
    down = {said(bank, path, item).get("error_code") for path in asking for item in (one, two)}
    bank.plaid.step(one.item_id, changes=4)
    unseen = len(one.log)
    up = said(bank, "/transactions/sync", other)
    plaids_own = said(bank, "/item/get", one)
    after(bank, HOUR_S)
    later = said(bank, "/transactions/sync", one)

    assert down == {code}
    assert unseen == 5
    assert "added" in up
    assert plaids_own["status"]["transactions"]["last_failed_update"] == "2026-05-01T12:00:00.000Z"
    assert len(later["added"]) >= 5
    assert len(one.log) >= 9


def test_what_is_no_outage_is_refused() -> None:
    bank = make_bank()

    with pytest.raises(ValueError, match="ITEM_LOCKED"):
        bank.plaid.institution_down("ins_109508", code="ITEM_LOCKED")
    with pytest.raises(PlaidFailure, match="INVALID_INSTITUTION"):
        bank.plaid.institution_down("ins_none")


# Webhooks


@pytest.mark.parametrize(("fate", "times"), [("lost", []), ("repeated", [0.0, 50.0]), ("late", [50.0])])
def test_a_declared_fate_befalls_the_webhooks_that_it_names(fate: Any, times: list[float]) -> None:
    bank = make_bank()
    item, other = (bank.plaid.create_item(name, transactions=5) for name in ("ada", "bob"))
    for one in (item, other):
        reader_of(bank, one).pull()
    bank.plaid.deliveries.declare(
        WebhookFault(kind=fate, item_id=item.item_id, code="SYNC_UPDATES_AVAILABLE", delay_s=50.0)
    )

    bank.plaid.notifier.notify(item, "ITEM", "PENDING_EXPIRATION", {})
    bank.plaid.step(other.item_id)
    bank.plaid.step(item.item_id)
    got = after(bank, 100)
    bank.plaid.step(item.item_id)
    later = after(bank, 100)

    assert [code for at, code in got if not at].count("SYNC_UPDATES_AVAILABLE") == 1 + times.count(0.0)
    assert [at for at, code in got if at] == [at for at in times if at]
    assert later == [(100.0, "SYNC_UPDATES_AVAILABLE")]


@pytest.mark.parametrize("error_late_s", [0.0, 600.0])
def test_an_error_and_its_repair_arrive_in_either_order_and_item_get_knows_what_was_sent_last(
    error_late_s: float,
) -> None:
    bank = make_bank()
    item = bank.plaid.create_item("ada", transactions=5)

    bank.plaid.break_item(item, "ITEM_LOGIN_REQUIRED", late_s=error_late_s)
    after(bank, 60)
    broken = said(bank, "/item/get", item)
    bank.plaid.repair_item(item)
    got = after(bank, HOUR_S)
    repaired = said(bank, "/item/get", item)

    assert broken["item"]["error"]["error_code"] == "ITEM_LOGIN_REQUIRED"
    assert broken["status"]["last_webhook"] == {"code_sent": "ERROR", "sent_at": "2026-05-01T12:00:00.000Z"}
    assert repaired["item"]["error"] is None
    assert repaired["status"]["last_webhook"] == {"code_sent": "LOGIN_REPAIRED", "sent_at": "2026-05-01T12:01:00.000Z"}
    assert [code for _, code in got] == (["LOGIN_REPAIRED", "ERROR"] if error_late_s else ["LOGIN_REPAIRED"])


def test_a_lost_webhook_was_sent_all_the_same() -> None:
    bank = make_bank(webhooks=WebhookRates(lost=1.0))
    item = bank.plaid.create_item("ada", transactions=5)
    reader_of(bank, item).pull()

    bank.plaid.step(item.item_id)

    assert after(bank, HOUR_S) == []
    assert said(bank, "/item/get", item)["status"]["last_webhook"]["code_sent"] == "SYNC_UPDATES_AVAILABLE"


def test_the_seed_shuffles_webhooks_over_most_of_a_day() -> None:
    bank = make_bank(webhooks=WebhookRates(delayed=1.0, delay_max_s=23 * HOUR_S))
    item = bank.plaid.create_item("ada", transactions=5)
    for number in range(50):
        bank.plaid.notifier.notify(item, "ITEM", f"CODE_{number:02}", {})

    got = after(bank, 24 * HOUR_S)

    codes = [code for _, code in got]
    assert len(got) == 50
    assert codes != sorted(codes)
    assert [at for at, _ in got] == sorted(at for at, _ in got)
    assert 12 * HOUR_S < got[-1][0] < 23 * HOUR_S


def test_the_seed_lets_requests_of_every_endpoint_fail() -> None:
    codes = ("INTERNAL_SERVER_ERROR", "TIMEOUT")
    bank = make_bank(faults=FaultRates(other_failure=0.5, failures=codes))
    item = bank.plaid.create_item("ada", transactions=5)

    for _ in range(100):
        bank.answer("/accounts/get", {"access_token": item.access_token})

    counts = {outcome: count for (path, outcome), count in bank.plaid.requests.items() if path == "/accounts/get"}
    assert set(counts) == {"OK", *codes}
    assert 30 < counts["OK"] < 70


# All of it


TROUBLES: tuple[Callable[[InProcessPlaid, Item], object], ...] = (
    lambda bank, item: bank.plaid.step(item.item_id, changes=3),
    lambda bank, item: failure_modes.refuse_cursors(item),
    lambda bank, item: failure_modes.refuse_cursors(item, code="TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"),
    lambda bank, item: failure_modes.unready_history(bank.plaid, item, initial_s=5, complete_s=50),
    lambda bank, item: bank.plaid.reachable(item) and failure_modes.remove_rows(bank.plaid, item, 5),
    lambda bank, item: bank.plaid.reachable(item) and failure_modes.return_rows(bank.plaid, item, 3),
    lambda bank, item: failure_modes.add_unseen_changes(item, changes=4),
    lambda bank, item: failure_modes.hide_account(
        item, next(a.account_id for a in item.accounts.values() if a.is_open)
    ),
    lambda bank, item: [failure_modes.show_account(bank.plaid, item, account_id) for account_id in item.accounts],
    lambda bank, item: bank.plaid.institution_down(item.institution.institution_id, for_s=20),
    lambda bank, item: bank.plaid.break_item(item, "ITEM_LOGIN_REQUIRED"),
    lambda bank, item: bank.plaid.repair_item(item),
    lambda bank, item: bank.plaid.faults.declare(Fault(code="MUTATION", page=2, times=2)),
    lambda bank, item: bank.plaid.faults.declare(Fault(code="TRUNCATED", page=1)),
    lambda bank, item: bank.plaid.poll(item),
)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000), acts=st.lists(st.tuples(st.integers(0, len(TROUBLES) - 1), st.booleans()), max_size=25)
)
def test_whatever_goes_wrong_a_reader_that_begins_again_where_it_is_refused_ends_with_the_truth(
    seed: int, acts: list[tuple[int, bool]]
) -> None:
    bank = make_bank(seed=seed)
    item = bank.plaid.create_item("ada", institution_id="ins_109508", transactions=30)
    reader = reader_of(bank, item, count=7)

    for number, reads in acts:
        TROUBLES[number](bank, item)
        after(bank, 10)
        if reads:
            reader = read(bank, item, reader)
    bank.plaid.faults.withdraw()
    bank.plaid.repair_item(item)
    for account_id in list(item.accounts):
        failure_modes.show_account(bank.plaid, item, account_id)
    after(bank, HOUR_S)
    bank.plaid.poll(item)
    reader = read(bank, item, reader)

    assert reader.status == "HISTORICAL_UPDATE_COMPLETE"
    assert reader.rows == truth_rows(item)


def read(bank: InProcessPlaid, item: Item, reader: Reader) -> Reader:
    """Read on; where the cursor is refused, whatever the reason, begin again with nothing."""
    for _ in range(3):
        try:
            reader.pull()
        except Refused as refusal:
            if refusal.code in ("INVALID_FIELD", "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"):
                reader = reader_of(bank, item, count=7)
        else:
            break
    return reader


def test_the_same_seed_and_troubles_give_the_same_bytes() -> None:
    assert _life(seed=5) == _life(seed=5)
    assert _life(seed=5) != _life(seed=6)


def _life(seed: int) -> list[bytes]:
    rates = WebhookRates(lost=0.2, repeated=0.2, delayed=0.5, delay_max_s=60)
    faults = FaultRates(mutation=0.2, failure=0.1, other_failure=0.2)
    bank = make_bank(seed=seed, webhooks=rates, faults=faults, rotate_key_every=3)
    item = bank.plaid.create_item("ada", institution_id="ins_109508", transactions=30)
    told: list[bytes] = []
    for act in TROUBLES * 3:
        act(bank, item)
        paths = ("/transactions/sync", "/accounts/get", "/item/get")
        told += [bank.answer(path, {"access_token": item.access_token}).body for path in paths]
        for sent in bank.webhooks(bank.plaid.clock.now() + dt.timedelta(seconds=10)):
            told += [sent.body, sent.jwt.encode(), sent.jwk, sent.at.isoformat().encode()]
            bank.record_answer(sent, status=503)
    return told
