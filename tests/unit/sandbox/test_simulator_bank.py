"""The simulated bank: balances that follow, everything that a bank does to its rows, the same bytes for a seed."""

import datetime as dt
import hashlib
import json
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.simulator.api.dispatcher import answer
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.institutions import INSTITUTIONS, ROTATION
from sandbox.simulator.bank.transactions import Change, Transaction, amount_text
from sandbox.simulator.bank.truth import truth_of
from sandbox.simulator.clock import ManualClock
from sandbox.simulator.control import failure_modes
from sandbox.simulator.control.scripted_data import ScriptedChange, scripted_changes
from sandbox.simulator.options import Options
from sandbox.simulator.simulated_plaid import LinkSession, SimulatedPlaid

START = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
KEYS = {"PLAID-CLIENT-ID": "simulated-client", "PLAID-SECRET": "simulated-secret"}


def make_world(**options: Any) -> SimulatedPlaid:
    chosen: dict[str, Any] = {"rate_limits": "off", "validate_requests": False, **options}
    return SimulatedPlaid(Options(**chosen), ManualClock(START))


def lived(item: Item, world: SimulatedPlaid, *, steps: int, changes: int = 4) -> list[list[Change]]:
    outcomes = (world.step(item.item_id, changes=changes) for _ in range(steps))
    return [list(outcome.changes) for outcome in outcomes if outcome is not None]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), bank=st.sampled_from(ROTATION), steps=st.integers(0, 40))
def test_balances_are_the_opening_ones_and_the_rows(seed: int, bank: str, steps: int) -> None:
    world = make_world(seed=seed)
    item = world.create_item("ada", institution_id=bank, transactions=50)

    lived(item, world, steps=steps)

    for account in item.accounts.values():
        rows = [row for row in item.live.values() if row.account_id == account.account_id]
        posted = sum((row.amount for row in rows if not row.pending), Decimal(0))
        held = sum((row.amount for row in rows if row.pending), Decimal(0))
        owed = account.plan.type in ("credit", "loan")
        assert account.current == account.opening + (posted if owed else -posted)
        assert account.pending_sum == held


def test_a_posted_row_moves_current_and_a_pending_one_only_available() -> None:
    world = make_world()
    item = world.create_item("ada", institution_id="ins_109511", transactions=0)
    before = {a.account_id: (a.current, a.available) for a in item.accounts.values()}

    (changes,) = lived(item, world, steps=1, changes=1)

    row = changes[0].transaction
    account = item.accounts[row.account_id]
    current, available = before[account.account_id]
    owed = account.plan.type in ("credit", "loan")
    moved = Decimal(0) if row.pending else row.amount
    assert account.current == current + (moved if owed else -moved)
    if available is not None:
        assert account.available == available - row.amount


def test_everything_that_a_bank_does_happens() -> None:
    world = make_world(seed=7)
    item = world.create_item("ada", institution_id="ins_109508", transactions=300)
    seen: Counter[str] = Counter()
    known = dict(item.live)
    removed: set[str] = set()

    for changes in lived(item, world, steps=600, changes=3):
        gone = {c.transaction.transaction_id: c.transaction for c in changes if c.kind == "removed"}
        for change in changes:
            row, before = change.transaction, known.get(change.transaction.transaction_id)
            if change.kind == "added" and row.transaction_id in removed:
                seen["came back"] += 1
            elif change.kind == "added" and row.pending_transaction_id in gone:
                waited = gone[str(row.pending_transaction_id)]
                seen["posted"] += 1
                seen["posted with a tip"] += row.amount > waited.amount > 0
            elif change.kind == "added" and not row.pending and row.pending_transaction_id is None:
                alike = [g for g in gone.values() if g.original_description == row.original_description]
                seen["posted without a link"] += any(g.pending for g in alike)
                seen["churned"] += any(not g.pending for g in alike)
            elif change.kind == "added":
                seen["pending"] += row.pending
            if change.kind == "modified" and before is not None:
                seen["modified without a change" if before == row else "amended"] += 1
            seen["refund"] += change.kind == "added" and row.transaction_code == "refund"
            seen["wages"] += change.kind == "added" and row.name.endswith("Payroll")
            seen["removed"] += change.kind == "removed" and not row.pending
            seen["hold released"] += (
                change.kind == "removed"
                and row.pending
                and not any(
                    c.transaction.original_description == row.original_description for c in changes if c.kind == "added"
                )
            )
        for change in changes:
            known[change.transaction.transaction_id] = change.transaction
            if change.kind == "removed":
                removed.add(change.transaction.transaction_id)

    expected = {
        "pending",
        "posted",
        "posted with a tip",
        "posted without a link",
        "hold released",
        "amended",
        "came back",
        "modified without a change",
        "removed",
        "churned",
        "wages",
    }
    assert expected <= {name for name, times in seen.items() if times}


def test_an_update_never_names_an_id_twice() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=20)

    updates = lived(item, world, steps=300, changes=10)

    for changes in updates:
        ids = [change.transaction.transaction_id for change in changes]
        assert len(set(ids)) == len(ids)


def test_every_kind_of_currency_and_account_is_there() -> None:
    world = make_world()
    items = [world.create_item(f"user-{n}", transactions=400) for n in range(len(ROTATION))]

    plans = [account.plan for item in items for account in item.accounts.values()]
    rows = [row for item in items for row in item.live.values()]

    assert {plan.currency.decimals for plan in plans} == {0, 2, 3, 7}
    assert {plan.type for plan in plans} == {"depository", "credit", "loan", "investment"}
    assert all((row.currency.iso_code is None) != (row.currency.unofficial_code is None) for row in rows)
    assert {row.currency.iso_code for row in rows} >= {"USD", "CAD", "GBP", "EUR", "JPY", "KWD", None}
    yen = [row.amount for row in rows if row.currency.iso_code == "JPY"]
    assert all(amount == amount.to_integral_value() for amount in yen)
    places = {len(amount_text(row.amount).partition(".")[2]) for row in rows if row.currency.iso_code == "USD"}
    assert max(places) == 7, "no amount below the cent"


def test_the_rows_are_as_rich_as_plaids() -> None:
    world = make_world(seed=3, novelty=0.1)
    rows = [
        row
        for bank in INSTITUTIONS
        for row in world.create_item("ada", institution_id=bank.institution_id, transactions=500).live.values()
    ]

    assert {row.confidence for row in rows} == {"VERY_HIGH", "HIGH", "MEDIUM", "LOW", "UNKNOWN", None}
    assert any(row.category is None for row in rows)
    assert any(len(row.counterparties) > 1 for row in rows)
    assert {p.type for row in rows for p in row.counterparties} >= {
        "merchant",
        "marketplace",
        "payment_app",
        "payment_terminal",
        "income_source",
        "financial_institution",
    }
    assert any(row.place and row.place.lat for row in rows)
    assert any(row.datetime and row.datetime.endswith("T00:00:00Z") for row in rows)
    assert any(row.check_number for row in rows)
    assert any(row.novelty for row in rows)
    assert len({row.merchant.name for row in rows if row.merchant}) > 55
    assert len({row.transaction_id for row in rows}) == len(rows)
    assert all(len(row.transaction_id) == 37 and row.transaction_id.isalnum() for row in rows)


def test_the_same_seed_and_calls_give_the_same_bytes() -> None:
    assert _life(seed=11) == _life(seed=11)
    assert _life(seed=11) != _life(seed=12)


def _life(seed: int) -> str:
    clock = ManualClock(START)
    world = SimulatedPlaid(Options(seed=seed, rate_limits="off", webhook_url="http://tartan.example/w"), clock)
    told = hashlib.sha256()

    def ask(path: str, **body: Any) -> dict[str, Any]:
        answered = answer(world, path, KEYS, json.dumps(body).encode())
        told.update(answered.body)
        given: dict[str, Any] = json.loads(answered.body)
        return given

    offered = ask("/sandbox/public_token/create", institution_id="ins_109508", initial_products=["transactions"])
    token = ask("/item/public_token/exchange", public_token=offered["public_token"])["access_token"]
    for _ in range(5):
        ask("/transactions/sync", access_token=token)
        clock.advance(30)
        world.tasks.run_due()
        world.step(changes=5)
        ask("/accounts/get", access_token=token)
        for delivery in world.deliveries.due(clock.now()):
            told.update(delivery.webhook.body)
            told.update(world.keyring.sign(delivery.webhook.body, clock.now()).encode())
            world.deliveries.record_answer(delivery, status=200, retry_after=None, now=clock.now())
    return told.hexdigest()


def test_one_items_life_does_not_depend_on_the_others() -> None:
    alone, crowded = make_world(), make_world()
    item, same = alone.create_item("ada", transactions=30), crowded.create_item("ada", transactions=30)
    crowd = crowded.create_item("bob", transactions=30)
    for _ in range(10):
        alone.step(item.item_id, changes=3)
        crowded.step(crowd.item_id, changes=2)
        crowded.step(same.item_id, changes=3)

    assert truth_of(item, version="v2") == truth_of(same, version="v2")


def test_an_item_in_error_is_not_told_anything_until_its_repair() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=30)
    world.break_item(item, "ITEM_LOGIN_REQUIRED")
    changes = len(item.log)

    world.step(item.item_id, changes=4)
    withheld = len(item.log) - changes
    world.repair_item(item)

    assert withheld == 0
    assert len(item.log) >= changes + 4


def test_what_happens_before_an_item_is_ready_arrives_when_it_is() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=20, ready=False)

    world.step(item.item_id, changes=3)
    before = len(item.log)
    world.become_ready(item)

    assert before == 0
    assert len(item.log) >= 23


def test_a_second_link_of_a_login_shares_rows_and_no_id() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=100)
    lived(item, world, steps=10)

    again = world.relink(item)

    assert not set(again.live) & set(item.live)
    assert not set(again.accounts) & set(item.accounts)
    assert again.item_id != item.item_id
    alike = [(row.date, row.amount, row.original_description) for row in item.live.values()]
    assert Counter(alike) == Counter((row.date, row.amount, row.original_description) for row in again.live.values())
    assert [a.persistent_id for a in again.accounts.values()] == [a.persistent_id for a in item.accounts.values()]
    assert [a.current for a in again.accounts.values()] == [a.current for a in item.accounts.values()]


def test_a_withdrawn_account_leaves_the_truth_and_the_feed() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=100)
    account_id = next(iter(item.live.values())).account_id

    failure_modes.revoke_account(world, item, account_id)
    lived(item, world, steps=20)

    truth = truth_of(item, version="v2")
    assert account_id not in {account["account_id"] for account in truth["accounts"]}
    assert account_id not in {row["account_id"] for row in truth["transactions"]}
    body = json.dumps({"access_token": item.access_token, "count": 500}).encode()
    page = json.loads(answer(world, "/transactions/sync", KEYS, body).body)
    assert account_id not in {row["account_id"] for row in page["added"]}


def test_an_account_that_comes_back_under_another_id_keeps_its_rows_and_balance() -> None:
    world = make_world()
    item = world.create_item("ada", institution_id="ins_109511", transactions=100)
    account = next(iter(item.accounts.values()))
    before = [(row.date, row.amount) for row in item.live.values() if row.account_id == account.account_id]
    current, available = account.current, account.available

    failure_modes.reissue_account(world, item, account.account_id)

    (successor,) = [a for a in item.accounts.values() if a.mask == account.mask and a.is_open]
    after = [(row.date, row.amount) for row in item.live.values() if row.account_id == successor.account_id]
    assert successor.account_id != account.account_id
    assert (successor.current, successor.available) == (current, available)
    assert Counter(after) == Counter(before)
    assert account.account_id not in {row.account_id for row in item.live.values()}
    assert len(truth_of(item, version="v2")["accounts"]) == 4


def test_an_offered_account_shows_after_update_mode() -> None:
    world = make_world()
    item = world.create_item("ada", institution_id="ins_109511", transactions=10)
    failure_modes.offer_account(world, item)
    before = len(item.accounts)
    session = LinkSession("ada", None, ("transactions",), item.access_token, 90)

    same = world.complete_link(world.link_token(session), institution_id=None)

    assert same is item
    assert (before, len(item.accounts)) == (4, 5)


def test_an_update_can_be_dictated() -> None:
    world = make_world()
    item = world.create_item("ada", institution_id="ins_109511", transactions=0)

    def dictate(*wishes: ScriptedChange) -> list[Transaction]:
        outcome = world.apply_update(item, lambda drawing: scripted_changes(drawing, wishes))
        return [change.transaction for change in outcome.changes]

    (waiting,) = dictate(ScriptedChange(amount="4.50", merchant="Starbucks", pending=True, date=START.date()))
    dictate(
        ScriptedChange(kind="removed", transaction_id=waiting.transaction_id),
        ScriptedChange(
            amount="5.25", merchant="Starbucks", transaction_id="own-id", pending_transaction_id=waiting.transaction_id
        ),
    )
    (amended,) = dictate(ScriptedChange(kind="modified", transaction_id="own-id", amount="5.2500001", name="STARBUCKS"))

    assert set(item.live) == {"own-id"}
    assert (amended.amount, amended.name, amended.pending) == (Decimal("5.2500001"), "STARBUCKS", False)
    assert amended.pending_transaction_id == waiting.transaction_id
    assert amended.category is not None
    assert amended.category.detailed == "FOOD_AND_DRINK_COFFEE"


@pytest.mark.parametrize(
    "wish",
    [
        ScriptedChange(),
        ScriptedChange(amount="much"),
        ScriptedChange(amount="NaN"),
        ScriptedChange(amount="1", account_id="no"),
        ScriptedChange(amount="1", merchant="Nobody & Sons"),
        ScriptedChange(kind="removed", transaction_id="no"),
        ScriptedChange(kind="modified", amount="1"),
    ],
)
def test_what_cannot_be_dictated_changes_nothing(wish: ScriptedChange) -> None:
    world = make_world()
    item = world.create_item("ada", transactions=5)

    with pytest.raises(ValueError):
        world.apply_update(item, lambda drawing: scripted_changes(drawing, [wish]))

    assert len(item.log) == 5


def test_a_balance_can_drift_without_a_row() -> None:
    world = make_world()
    item = world.create_item("ada", transactions=10)
    account = next(iter(item.accounts.values()))
    before, rows = account.current, len(item.log)

    failure_modes.drift(item, account.account_id, Decimal("12.34"))

    assert (account.current, len(item.log)) == (before + Decimal("12.34"), rows)


@pytest.mark.parametrize(
    ("amount", "text"),
    [("12.50", "12.5"), ("100", "100"), ("0.0000001", "0.0000001"), ("-0", "0"), ("1E+3", "1000"), ("-3.10", "-3.1")],
)
def test_amounts_are_written_exactly(amount: str, text: str) -> None:
    assert amount_text(Decimal(amount)) == text


def test_an_update_larger_than_what_waits_to_post_is_drawn_and_ends() -> None:
    world = SimulatedPlaid(Options(seed=1), ManualClock(START))
    item = world.create_item("user", transactions=120, ready=True)

    for changes in (600, 600):
        outcome = world.step(item.item_id, changes=changes)

        assert outcome is not None
        assert len(outcome.changes) >= changes
