"""The beginning of a bank's ledger account: once, exact, before every date."""

import datetime
import itertools
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projections.model import pg_copy
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import money
from schemas.encoding import codec
from schemas.ids import ledger_account_id, opening_id
from schemas.log.records import Account
from tests.support.projections_log import Event, Log, account, added, balance, modified, owners, removed, transaction

COMPLETE = "HISTORICAL_UPDATE_COMPLETE"


def folded(log: Log) -> MemoryProjections:
    memory = MemoryProjections(owners)
    memory.project(log.records)
    return memory


def posted(memory: MemoryProjections, account_id: str, currency: str = "USD", kind: str = "bank") -> str:
    debits, credits_ = memory.balances.get((ledger_account_id(1, kind, account_id, currency), "posted"), (0, 0))
    held = debits - credits_
    return money.decimal_text(Decimal(held).scaleb(-money.ledger_scale(currency)))


def openings(memory: MemoryProjections, account_id: str, item_id: str = "item") -> list[tuple[int, int, datetime.date]]:
    own = opening_id(1, item_id, account_id)
    return [(one.number, one.amount, pg_copy.read_date(one.effective)) for one in memory.transfers if one.own_id == own]


def item_with(*said: Event, **head: Any) -> Log:
    log = Log()
    log.link("item")
    log.sync("item", *said, **head)
    return log


def test_what_the_bank_reports_less_what_is_posted_comes_from_equity_before_every_date() -> None:
    log = item_with(
        *added(transaction("a", "12.5"), transaction("b", "-40"), transaction("c", "7", pending=True)),
        *balance(account("checking", "100.01")),
        history_status=COMPLETE,
    )

    memory = folded(log)

    assert posted(memory, "checking") == "100.01"
    assert posted(memory, "opening", kind="equity") == "-72.51"
    assert openings(memory, "checking") == [(1, 7_251_000_000, datetime.date.min)]
    assert memory.accounts["item", "checking"].opened == 1
    assert memory.accounts["item", "checking"].opening_transfers == 1


@pytest.mark.parametrize(
    ("kind", "subtype", "held"),
    [("depository", "savings", "250"), ("credit", "credit card", "-250"), ("loan", "student", "-250")],
)
def test_what_a_user_owes_is_a_negative_balance(kind: str, subtype: str, held: str) -> None:
    said = account("a", "250", type=kind, subtype=subtype)
    log = item_with(*added(transaction("t", "40", account_id="a")), *balance(said), history_status=COMPLETE)

    assert posted(folded(log), "a") == held


@pytest.mark.parametrize(
    "said",
    [
        account("a", None),
        account("a", "1", type="investment"),
        account("a", "1", type="loan", subtype="mortgage"),
        account("a", "0.123456789"),
    ],
    ids=["no balance", "investment", "mortgage", "more decimals than the ledger keeps"],
)
def test_what_cannot_be_opened_waits(said: Any) -> None:
    log = item_with(*balance(said), history_status=COMPLETE)

    assert folded(log).accounts["item", "a"].opened is None
    assert not openings(folded(log), "a")

    log.sync("item", *balance(account("a", "5")))
    assert posted(folded(log), "a") == "5"


def test_nothing_is_opened_before_the_history_is_complete() -> None:
    log = item_with(*balance(account("checking", "100")), history_status="INITIAL_UPDATE_COMPLETE")
    assert not openings(folded(log), "checking")

    log.sync("item", *added(transaction("old", "30")), history_status=COMPLETE)
    memory = folded(log)

    assert posted(memory, "checking") == "100"
    assert memory.accounts["item", "checking"].opened == 2


def test_an_account_is_opened_once() -> None:
    log = item_with(*balance(account("checking", "100")), history_status=COMPLETE)
    log.sync("item", *balance(account("checking", "70")))
    log.sync("item", *added(transaction("a", "20")), *balance(account("checking", "55")), history_status=COMPLETE)

    memory = folded(log)

    assert len(openings(memory, "checking")) == 1
    assert posted(memory, "checking") == "80"  # the gap of 25 is reconciliation's to name


def test_the_opening_is_in_the_reported_accounts_currency() -> None:
    said = account("a", "3.000000000000000001", iso_currency_code=None, unofficial_currency_code="ETH")
    log = item_with(*balance(said), history_status=COMPLETE)

    assert posted(folded(log), "a", "ETH") == "3.000000000000000001"
    assert posted(folded(log), "a", "USD") == "0"


def continued(older_balance: str, *, older_current: str) -> MemoryProjections:
    """An old account whose row moved away save for one, and a younger one that goes on from it."""
    log = Log()
    log.link("old")
    log.sync(
        "old",
        *added(transaction("kept", older_balance)),
        *balance(account("checking", older_current)),
        history_status=COMPLETE,
    )
    memory = MemoryProjections(owners)
    memory.project(log.records)
    count = len(log.records)
    log.link("young", 1, *balance(account("again", "500")))
    memory.project(log.records[count:])
    memory.accounts["young", "again"].continues = ("old", "checking")
    memory.accounts["old", "checking"].continued_by = ("young", "again")
    log.sync("young", *added(transaction("new", "11", account_id="again")), history_status=COMPLETE)
    memory.items["young"].has_linked_items = True
    memory.project(log.records[count + 1 :])
    return memory


def test_an_account_that_goes_on_from_an_older_one_takes_over_its_balance() -> None:
    memory = continued("25", older_current="300")

    assert posted(memory, "checking") == "0"
    assert posted(memory, "again") == "500"
    assert posted(memory, "opening", kind="equity") == "-536"  # all that there is: 500 held, 25 and 11 spent
    assert [number for number, *_ in openings(memory, "again", "young")] == [1, 2]
    assert memory.accounts["young", "again"].opening_transfers == 2


def test_an_account_that_a_younger_one_goes_on_from_is_not_opened() -> None:
    log = item_with(*balance(account("checking", "100")))
    memory = folded(log)
    memory.accounts["item", "checking"].continued_by = ("young", "again")

    log.sync("item", history_status=COMPLETE)
    memory.project(log.records)

    assert not openings(memory, "checking")


STEPS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.lists(
            st.tuples(st.sampled_from(("add", "change", "remove", "post")), st.integers(0, 3), st.integers(-99, 99)),
            max_size=4,
        ),
        st.one_of(st.none(), st.integers(-999, 999)),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


def bank(steps: Any) -> Log:
    """Two Items of one user, each with an account; a step may report a balance, or that the history is complete."""
    log = Log()
    live: dict[int, dict[str, bool]] = {0: {}, 1: {}}
    for number in live:
        log.link(f"item{number}")
    for at, (item, acts, current, complete) in enumerate(steps):
        said: dict[str, list[Event]] = {}
        for act, which, cents in acts:
            names = [name for name in live[item] if name not in said]
            fields = {"account_id": f"a{item}", "pending": which % 2 == 0}
            if act == "add" or not names:
                name = f"t{item}.{at}.{which}"
                if name not in said and name not in live[item]:
                    live[item][name] = bool(fields["pending"])
                    said[name] = added(transaction(name, f"{cents}.5", **fields))
                continue
            name = names[which % len(names)]
            pending = live[item][name]
            if act == "remove" or (act == "post" and not pending):
                del live[item][name]
                said[name] = removed(name)
            elif act == "change":
                said[name] = modified(transaction(name, str(cents), account_id=f"a{item}", pending=pending))
            else:
                del live[item][name]
                live[item][f"{name}p"] = False
                posted_one = transaction(f"{name}p", str(cents), account_id=f"a{item}", pending_transaction_id=name)
                said[name] = [*removed(name), *added(posted_one)]
        events = [event for events in said.values() for event in events]
        if current is not None:
            events += balance(account(f"a{item}", f"{current}.25", type="credit" if item else "depository"))
        log.sync(f"item{item}", *events, history_status=COMPLETE if complete else None)
    return log


@given(STEPS, st.lists(st.integers(0, 12), max_size=4))
@settings(deadline=None)
def test_any_cut_into_batches_opens_the_same(steps: Any, cuts: list[int]) -> None:
    log = bank(steps)
    records, whole, one_by_one, some = (
        log.records,
        MemoryProjections(owners),
        MemoryProjections(owners),
        MemoryProjections(owners),
    )

    whole.project(records)
    for number in range(len(records)):
        one_by_one.project(records[number : number + 1])
    bounds = [0, *sorted({cut % (len(records) + 1) for cut in cuts}), len(records)]
    for begin, end in itertools.pairwise(bounds):
        some.project(records[begin:end])

    assert whole.full() == one_by_one.full() == some.full()


@given(STEPS)
@settings(deadline=None)
def test_after_the_opening_the_ledger_has_what_the_bank_reported(steps: Any) -> None:
    log, memory = bank(steps), MemoryProjections(owners)
    opened: set[str] = set()

    for record in log.records:
        memory.project([record])
        for (_, account_id), row in memory.accounts.items():
            if row.opened is not None and account_id not in opened:
                opened.add(account_id)
                assert row.cached_payload is not None
                assert posted(memory, account_id) == reported(row.cached_payload, owed=account_id == "a1")

    for account_id in opened:
        assert len(openings(memory, account_id, f"item{account_id[1:]}")) == 1


def reported(payload: bytes, *, owed: bool) -> str:
    current = Decimal(codec.decode(Account, payload).current or "")
    return money.decimal_text(-current if owed else current)
