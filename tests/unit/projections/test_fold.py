"""The fold's rules, one by one."""

import msgspec
import pytest

from projections.events import public_events
from projections.events.public_events import BalanceEvent, ItemEvent
from schemas import events
from schemas.events import ITEM_STATE_CHANGED, ITEM_UNLINKED
from schemas.log import gate
from schemas.log.records import Item, Transaction
from tests.support.projections_log import (
    START_US,
    Event,
    Log,
    about_item,
    account,
    added,
    balance,
    modified,
    removed,
    transaction,
)
from tests.support.projections_story import Story


@pytest.fixture
def story() -> Story:
    return Story()


def test_an_added_transaction_is_a_row_a_transfer_and_an_event(story: Story) -> None:
    assert story.sync(*added(transaction("T", "40"))) == [events.TRANSACTION_ADDED]

    assert (story.row.version, story.row.transfers, story.row.first_changeset) == (1, 1, 1)
    assert story.balances() == {"bank posted": -40, "category posted": 40}
    assert story.last_event().transaction == transaction("T", "40")


def test_money_that_comes_in_is_a_debit_of_the_bank_account(story: Story) -> None:
    story.sync(*added(transaction("T", "-40")))

    assert story.balances() == {"bank posted": 40, "category posted": -40}


def test_an_amount_of_zero_is_recorded_too(story: Story) -> None:
    story.sync(*added(transaction("T", "0")))

    assert [transfer.amount for transfer in story.memory.transfers] == [0]


def test_a_tip_raises_forty_pending_to_forty_eight_posted_in_three_transfers(story: Story) -> None:
    story.sync(*added(transaction("P", "40", pending=True)))
    kinds = story.sync(*removed("P"), *added(transaction("T", "48", pending_transaction_id="P")))

    assert kinds == [events.TRANSACTION_MODIFIED]
    assert [(one.amount // 10**8, one.layer, one.reverses) for one in story.memory.transfers] == [
        (40, "pending", None),
        (40, "pending", 1),
        (48, "posted", None),
    ]
    assert story.balances() == {"bank pending": 0, "bank posted": -48, "category pending": 0, "category posted": 48}


@pytest.mark.parametrize("order", [1, -1])
def test_a_posted_transaction_goes_on_in_the_row_of_its_pending_one(story: Story, order: int) -> None:
    story.sync(*added(transaction("P", pending=True)))
    own_id = story.row.own_id
    both = [*removed("P"), *added(transaction("T", pending_transaction_id="P"))]

    assert story.sync(*both[::order]) == [events.TRANSACTION_MODIFIED]

    assert (story.row.own_id, story.row.transaction_id, story.row.version) == (own_id, "T", 2)
    assert story.last_event().changed == ["transaction_id", "pending", "pending_transaction_id"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_pending_transaction_and_its_posted_one_in_one_first_record_are_one_row(story: Story, order: int) -> None:
    both = [*added(transaction("P", pending=True)), *added(transaction("T", pending_transaction_id="P"))]

    assert story.sync(*both[::order]) == [events.TRANSACTION_ADDED]

    assert story.row.transaction_id == "T"


def test_a_removal_of_the_superseded_id_that_comes_later_does_nothing(story: Story) -> None:
    story.sync(*added(transaction("P", pending=True)))
    story.sync(*added(transaction("T", pending_transaction_id="P")))

    assert story.sync(*removed("P")) == []
    assert story.row.removed_at is None


def test_a_posted_transaction_finds_its_pending_one_although_it_was_removed_before(story: Story) -> None:
    story.sync(*added(transaction("P", pending=True)))
    story.sync(*removed("P"))

    # Readers have seen the removal, so to them it is added again.
    assert story.sync(*added(transaction("T", pending_transaction_id="P"))) == [events.TRANSACTION_ADDED]
    assert (story.row.transaction_id, story.row.version, story.row.removed_at) == ("T", 3, None)


@pytest.mark.parametrize(
    "known",
    [transaction("rent", "1200"), transaction("rent", "1200", pending=True, account_id="savings")],
    ids=["posted", "in another account"],
)
def test_a_transaction_that_a_stranger_names_as_its_pending_one_stays(story: Story, known: Transaction) -> None:
    story.sync(*added(known))
    story.edit(story.row.own_id, "rent", notes="flat")

    assert story.sync(*added(transaction("coffee", "3", pending_transaction_id="rent"))) == [events.TRANSACTION_ADDED]

    rows = {row.transaction_id: row for row in story.memory.rows.values()}
    assert {name for name, row in rows.items() if row.is_shown} == {"rent", "coffee"}
    assert rows["rent"].user_fields is not None
    assert rows["coffee"].user_fields is None
    assert sum(story.by_category().values()) == 1203


def test_a_posted_transaction_that_its_record_replaces_goes_on(story: Story) -> None:
    story.sync(*added(transaction("T")))

    assert story.sync(*added(transaction("U", pending_transaction_id="T")), *removed("T")) == [
        events.TRANSACTION_MODIFIED
    ]
    assert story.row.transaction_id == "U"


def test_a_chains_first_id_that_comes_back_begins_a_second_chain(story: Story) -> None:
    story.sync(*added(transaction("P", pending=True)))
    story.sync(*removed("P"), *added(transaction("T", pending_transaction_id="P")))

    assert story.sync(*added(transaction("P", "7", pending=True))) == [events.TRANSACTION_ADDED]

    assert {row.transaction_id for row in story.memory.rows.values()} == {"P", "T"}
    assert story.sync(*removed("P")) == [events.TRANSACTION_REMOVED]
    assert story.sync(*modified(transaction("T", "9", pending_transaction_id="P"))) == [events.TRANSACTION_MODIFIED]


def test_what_is_modified_without_a_change_vanishes(story: Story) -> None:
    story.sync(*added(transaction("T"), transaction("U")))

    assert story.sync(*modified(transaction("T")), *added(transaction("U"))) == []
    assert {row.version for row in story.memory.rows.values()} == {1}


def test_one_of_108_modified_is_one_event_with_the_changed_fields(story: Story) -> None:
    names = [f"T{number}" for number in range(108)]
    story.sync(*added(*(transaction(name) for name in names)))

    said = [transaction(name, **({"name": "Corner Shop"} if name == "T7" else {})) for name in names]
    assert story.sync(*modified(*said)) == [events.TRANSACTION_MODIFIED]
    assert (story.last_event().transaction.transaction_id, story.last_event().changed) == ("T7", ["name"])


@pytest.mark.parametrize(
    ("before", "after", "is_change"),
    [
        ('{"a":1,"b":[true]}', '{ "b": [true], "a": 1 }', False),
        ('{"a":1}', '{"a":true}', True),
        ('{"a":1}', '{"a":"1"}', True),
        ('{"a":0.1}', '{"a":0.10000000000000001}', True),
        ("not json", "not  json", True),
    ],
)
def test_json_that_differs_in_order_and_white_space_is_no_change(
    story: Story, before: str, after: str, is_change: bool
) -> None:
    story.sync(*added(transaction("T", location_json=before)))
    payload = story.row.payload

    kinds = story.sync(*modified(transaction("T", location_json=after)))

    assert kinds == [events.TRANSACTION_MODIFIED] * is_change
    assert (story.row.payload == payload) is not is_change


def test_a_modified_transaction_that_is_unknown_is_added(story: Story) -> None:
    assert story.sync(*modified(transaction("T"))) == [events.TRANSACTION_ADDED]


def test_an_added_transaction_that_is_known_is_a_change(story: Story) -> None:
    story.sync(*added(transaction("T", "1")))

    assert story.sync(*added(transaction("T", "2"))) == [events.TRANSACTION_MODIFIED]
    assert story.row.transfers == 3


def test_a_removal_of_what_is_unknown_or_removed_does_nothing(story: Story) -> None:
    story.sync(*added(transaction("T")))
    story.sync(*removed("T"))
    before = msgspec.structs.astuple(story.row)

    assert story.sync(*removed("T"), *removed("never")) == []
    assert msgspec.structs.astuple(story.row) == before


def test_a_removed_transaction_keeps_its_row_and_reverses_its_transfer(story: Story) -> None:
    story.sync(*added(transaction("T", "40")))

    assert story.sync(*removed("T")) == [events.TRANSACTION_REMOVED]

    assert story.row.removed_at == START_US + 3_000_000
    assert story.balances() == {"bank posted": 0, "category posted": 0}
    assert story.last_event().transaction.amount == "40"


def test_a_removed_transaction_may_come_back_under_its_own_id(story: Story) -> None:
    story.sync(*added(transaction("T")))
    own_id = story.row.own_id
    story.sync(*removed("T"))

    assert story.sync(*added(transaction("T"))) == [events.TRANSACTION_ADDED]
    assert (story.row.own_id, story.row.version, story.row.transfers, story.row.removed_at) == (own_id, 3, 3, None)


def test_what_comes_and_goes_within_a_record_leaves_nothing(story: Story) -> None:
    assert story.sync(*added(transaction("T")), *removed("T")) == []
    assert story.memory.rows == {}
    assert story.memory.transfers == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("amount", "11"),
        ("account_id", "savings"),
        ("category_primary", "TRAVEL"),
        ("iso_currency_code", "EUR"),
        ("pending", True),
        ("date", "2026-03-02"),
    ],
)
def test_what_the_ledger_says_is_taken_back_and_said_anew(story: Story, field: str, value: object) -> None:
    story.sync(*added(transaction("T")))
    story.sync(*modified(transaction("T", **{"amount": "10", field: value})))  # type: ignore[arg-type]

    assert [one.reverses for one in story.memory.transfers] == [None, 1, None]


def test_another_name_is_an_event_and_no_transfer(story: Story) -> None:
    story.sync(*added(transaction("T")))

    assert story.sync(*modified(transaction("T", name="Other"))) == [events.TRANSACTION_MODIFIED]
    assert len(story.memory.transfers) == 1


def test_the_time_of_enrichment_is_that_of_the_last_enrichment(story: Story) -> None:
    story.sync(*added(transaction("T", category_primary=None, merchant_name=None)))
    assert story.row.enriched_at is None

    story.sync(*modified(transaction("T", category_primary=None, merchant_name="Coffee")))
    enriched = story.row.enriched_at
    story.sync(*modified(transaction("T", "11", category_primary=None, merchant_name="Coffee")))

    assert enriched == START_US + 3_000_000
    assert story.row.enriched_at == enriched


def test_a_balance_is_updated_only_when_the_words_of_its_source_differ(story: Story) -> None:
    assert story.sync(*balance(account(current="100"))) == [events.BALANCE_UPDATED]
    assert story.sync(*balance(account(current="100"))) == []
    realtime = story.log.append("A", balance(account(current="90"), realtime=True), kind=gate.FREE, type=gate.BALANCE)
    assert story.project(realtime) == [events.BALANCE_UPDATED]
    # The sync still says what it said before, so nothing is news.
    assert story.sync(*balance(account(current="100"))) == []
    assert story.sync(*balance(account(current="80"))) == [events.BALANCE_UPDATED]

    said: BalanceEvent = public_events.read_balance(story.memory.folded[-1].net_events[0].data)
    assert (said.account.current, said.previous and said.previous.current, said.source) == ("80", "100", "cached")


def test_an_items_state_is_news_once(story: Story) -> None:
    lost = about_item(ITEM_STATE_CHANGED, Item("A", "login_required", code="ITEM_LOGIN_REQUIRED"))

    assert story.project(story.log.append("A", lost, type=gate.STATE)) == [ITEM_STATE_CHANGED]
    assert story.project(story.log.append("A", lost, type=gate.STATE)) == []

    said: ItemEvent = public_events.read_item(story.memory.folded[1].net_events[0].data)
    assert (said.item.state, said.previous_state) == ("login_required", "active")


def test_an_unlinked_item_keeps_its_rows_and_takes_nothing_more(story: Story) -> None:
    story.sync(*added(transaction("T")))
    over = about_item(ITEM_UNLINKED, Item("A", "unlinked"))

    assert story.project(story.log.append("A", over, type=gate.UNLINK)) == [ITEM_UNLINKED]
    assert story.sync(*removed("T")) == []

    assert story.row.removed_at is None
    assert story.memory.verdicts["item_is_unlinked"] == 1


def test_known_at_never_goes_back_within_a_partition(story: Story) -> None:
    story.project(story.log.sync("A", *added(transaction("T")), at=START_US - 5_000_000))
    assert story.row.known_at == START_US + 1_000_000


def test_events_of_later_issues_are_counted_and_have_no_effect(story: Story) -> None:
    story.sync(("transaction.blessed", 99, b"whatever"), *added(transaction("T")))

    [synced] = story.memory.folded[1:]
    assert synced.not_effective == {"transaction.blessed": 1}
    assert synced.counts == {"transaction.blessed": 1, events.TRANSACTION_ADDED: 1}
    assert story.memory.quarantined == {}


def test_a_free_record_counts_once(story: Story) -> None:
    said = balance(account(current="1"), realtime=True)
    first = story.log.append("A", said, kind=gate.FREE, type=gate.BALANCE, id=b"f" * 16)
    again = story.log.append("A", said, kind=gate.FREE, type=gate.BALANCE, id=b"f" * 16)

    assert story.project(first, again) == [events.BALANCE_UPDATED]
    assert story.project(story.log.append("A", said, kind=gate.FREE, type=gate.BALANCE, id=b"f" * 16)) == []


def test_parts_wait_for_the_record_that_names_them_and_get_its_offset(story: Story) -> None:
    part = story.log.append("A", added(transaction("T")), kind=gate.PART, type="part", id=b"p" * 16)
    assert story.project(part) == []

    named = story.log.sync("A", *added(transaction("U")), parts=[b"p" * 16])
    assert story.project(named) == [events.TRANSACTION_ADDED] * 2

    assert {row.first_changeset for row in story.memory.rows.values()} == {named.offset}
    assert story.memory.items["A"].chunks == {}


def test_parts_that_the_next_record_does_not_name_are_dropped(story: Story) -> None:
    story.project(story.log.append("A", added(transaction("T")), kind=gate.PART, type="part", id=b"p" * 16))
    story.sync(*added(transaction("U")))

    story.project(story.log.sync("A", parts=[b"p" * 16]))

    assert "A" in story.memory.quarantined


def test_a_body_that_does_not_open_quarantines_its_item_and_what_follows_is_withheld(story: Story) -> None:
    story.project(story.log.append("A", added(transaction("T")), keys=Log.stranger()))
    story.sync(*added(transaction("U")))
    story.memory.project([story.log.link("B"), story.log.sync("B", *added(transaction("V")))])

    assert story.memory.withheld == [("A", 1), ("A", 2)]
    assert story.row.transaction_id == "V"


@pytest.mark.parametrize(
    "said",
    [
        added(transaction("T", "9223372036854775808")),
        added(transaction("T", "0.0000000000000000001")),
        added(transaction("T", date="2026-02-30")),
        added(transaction("T", "ten")),
        balance(account(current="9223372036854775808")),
        added(transaction("T", extra_json="x" * 140_000)),
        [(events.TRANSACTION_ADDED, 1, b"\x02")],
        [(events.TRANSACTION_ADDED, 77, b"")],
    ],
)
def test_what_cannot_be_read_is_set_aside_before_anything_changes(story: Story, said: list[Event]) -> None:
    assert story.sync(*added(transaction("good")), *said) == []

    assert "A" in story.memory.quarantined
    assert story.memory.rows == {}


def test_two_items_with_the_same_plaid_ids_are_two_transactions(story: Story) -> None:
    story.sync(*added(transaction("T")))
    story.project(story.log.link("B"), story.log.sync("B", *added(transaction("T"))))

    assert len(story.memory.rows) == 2
