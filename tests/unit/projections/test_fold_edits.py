"""The fold's rules about what users say, one by one."""

import io
import json
from typing import Any

import fastavro
import msgspec
import pytest

from projections.ledger import user_field_values
from projections.model.unit_of_work import Row
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.ids import own_id
from schemas.log.records import Decision
from tests.support.projections_log import account, added, balance, edited, modified, removed, transaction
from tests.support.projections_story import OWN, Story

HALVES = [{"category": "RENT", "amount": "40"}, {"category": "GIFT", "amount": "8"}]


@pytest.fixture
def story() -> Story:
    return Story()


def test_an_edit_is_one_event_with_the_fields_that_changed_a_version_and_two_transfers(story: Story) -> None:
    story.sync(*added(transaction("T", "48")))

    assert story.edit(category="RENT", hidden=True) == [events.TRANSACTION_MODIFIED]

    assert story.last_event().changed == ["user_fields.category", "user_fields.hidden"]
    assert story.last_event().user_fields == {"category": "RENT", "hidden": True}
    assert story.row.user_fields == '{"category":{"at":2,"value":"RENT"},"hidden":{"at":2,"value":true}}'
    assert (story.row.version, [version.row.user_fields for version in story.memory.versions]) == (2, [None])
    assert [one.reverses for one in story.memory.transfers] == [None, 1, None]
    assert story.by_category() == {"RENT": 48}


def test_what_was_said_already_is_no_event_and_counts_as_said_later(story: Story) -> None:
    story.sync(*added(transaction("T")))
    story.edit(category="RENT")

    assert story.edit(category="RENT", notes=None) == []

    assert json.loads(story.row.user_fields or "")["category"] == {"at": 3, "value": "RENT"}
    assert (story.row.version, len(story.memory.versions)) == (2, 1)


def test_no_word_of_the_banks_touches_what_the_user_said(story: Story) -> None:
    story.sync(*added(transaction("T", "48")))
    story.edit(category="RENT", notes="mine")
    before = story.row.user_fields

    assert story.sync(*modified(transaction("T", "50", category_primary="TRAVEL"))) == [events.TRANSACTION_MODIFIED]

    assert (story.row.user_fields, story.by_category()) == (before, {"RENT": 50})
    assert story.last_event().changed == ["amount", "category_primary"]


def test_a_category_that_the_user_clears_is_the_banks_again_and_one_they_emptied_is_none(story: Story) -> None:
    story.sync(*added(transaction("T", "48")))

    story.edit(category="")
    assert story.by_category() == {"UNCATEGORISED": 48}
    story.edit(category=None)
    assert story.by_category() == {"FOOD_AND_DRINK": 48}


@pytest.mark.parametrize("name", ["P", "T"])
def test_an_edit_of_a_pending_transaction_lives_on_in_the_posted_one(story: Story, name: str) -> None:
    story.sync(*added(transaction("P", "40", pending=True)))
    own = story.row.own_id
    story.edit(own, "P", category="RENT")
    story.sync(*removed("P"), *added(transaction("T", "48", pending_transaction_id="P")))

    # Somebody may still have the pending one's id in hand.
    assert story.edit(own, name, notes="late") == [events.TRANSACTION_MODIFIED]

    assert story.last_event().user_fields == {"category": "RENT", "notes": "late"}
    assert story.by_category() == {"RENT": 48}


def test_a_removed_transaction_keeps_what_is_said_of_it_and_shows_it_when_it_comes_back(story: Story) -> None:
    story.sync(*added(transaction("T", "48")))
    story.sync(*removed("T"))

    assert (story.edit(category="RENT"), story.by_category()) == ([], {})
    assert story.sync(*added(transaction("T", "48"))) == [events.TRANSACTION_ADDED]

    assert (story.last_event().user_fields, story.by_category()) == ({"category": "RENT"}, {"RENT": 48})


def test_an_edit_that_comes_before_its_transaction_waits_for_it_by_plaids_id(story: Story) -> None:
    assert story.edit(category="GIFT", notes="early") == []
    assert story.edit(b"\1" * 16, "T", category="RENT") == []
    assert story.memory.items["A"].waiting_edits.keys() == {"T"}

    assert story.sync(*added(transaction("T", "48"))) == [events.TRANSACTION_ADDED]

    assert story.last_event().user_fields == {"category": "RENT", "notes": "early"}
    assert (story.by_category(), story.memory.items["A"].waiting_edits, story.row.version) == ({"RENT": 48}, {}, 1)


@pytest.mark.parametrize("name", ["P", "T"])
def test_an_edit_waits_for_either_id_of_a_posted_transaction(story: Story, name: str) -> None:
    story.edit(b"\1" * 16, name, category="RENT")

    story.sync(*added(transaction("T", "48", pending_transaction_id="P")))

    assert (story.by_category(), story.memory.items["A"].waiting_edits) == ({"RENT": 48}, {})


def test_an_edit_of_the_posted_id_that_came_first_joins_what_was_said_of_the_pending_one(story: Story) -> None:
    story.edit(b"\1" * 16, "T", notes="early")
    story.sync(*added(transaction("P", "40", pending=True)))
    story.edit(own_id("P", salt=b"A"), "P", notes="late")

    story.sync(*removed("P"), *added(transaction("T", "48", pending_transaction_id="P")))

    assert story.last_event().user_fields == {"notes": "early\n---\nlate"}
    assert "user_fields.notes" in story.last_event().changed


def test_what_is_given_to_a_transaction_that_is_gone_in_the_same_update_waits_on(story: Story) -> None:
    story.edit(category="RENT")

    assert story.sync(*added(transaction("T")), *removed("T")) == []

    assert story.memory.items["A"].waiting_edits.keys() == {"T"}
    story.sync(*added(transaction("T", "48")))
    assert story.by_category() == {"RENT": 48}


def test_splits_are_a_transfer_each_while_they_add_up_and_one_category_when_they_do_not(story: Story) -> None:
    story.sync(*added(transaction("T", "48")))
    story.edit(category="TRAVEL")

    story.edit(splits=HALVES)
    assert (story.by_category(), len(story.row.postings)) == ({"RENT": 40, "GIFT": 8}, 2)
    story.sync(*modified(transaction("T", "50")))
    assert (story.by_category(), len(story.row.postings)) == ({"TRAVEL": 50}, 1)
    story.sync(*modified(transaction("T", "48")))
    assert story.by_category() == {"RENT": 40, "GIFT": 8}
    story.sync(*removed("T"))
    assert (story.by_category(), story.row.postings) == ({}, ())
    assert all(balance[0] == balance[1] for balance in story.memory.balances.values())


def test_a_split_the_other_way_is_money_that_comes_in(story: Story) -> None:
    story.sync(*added(transaction("T", "48")))

    story.edit(splits=[{"category": "RENT", "amount": "50"}, {"category": "CASHBACK", "amount": "-2"}])

    assert story.by_category() == {"RENT": 50, "CASHBACK": -2}


def test_a_transaction_of_another_user_is_none(story: Story) -> None:
    story.sync(*added(transaction("T", "48")))

    story.memory.project([story.log.link("B", 2)])
    assert story.project(story.log.edit("B", OWN, "T", user=2, category="RENT")) == []

    assert (story.row.user_fields, story.by_category()) == (None, {"FOOD_AND_DRINK": 48})


def relinked(story: Story) -> Row:
    """The same account over a second Item, after the first one's transaction moved there; the row as it is now."""
    purchase = transaction("T", "48", account_id="a1", original_description="RENT MAY")
    story.sync(*added(purchase), *balance(account("a1")))
    story.project(story.log.link("B"))
    again = msgspec.structs.replace(purchase, transaction_id="U", account_id="b1")
    story.project(story.log.sync("B", *added(again), *balance(account("b1"))))
    assert (story.row.own_id, story.row.item_id, story.row.transaction_id) == (OWN, "B", "U")
    return story.row


@pytest.mark.parametrize("own", [OWN, b"\1" * 16])
def test_an_edit_finds_a_transaction_that_lives_on_under_another_item(story: Story, own: bytes) -> None:
    relinked(story)

    assert story.edit(own, "T", category="RENT") == [events.TRANSACTION_MODIFIED]

    data = story.memory.folded[-1].net_events[-1].data
    event: Any = fastavro.schemaless_reader(
        io.BytesIO(data), catalogue.parsed_schema(catalogue.TRANSACTION_EVENT), None
    )
    assert (event["item_id"], event["id"], event["version"]) == ("B", OWN.hex(), story.row.version)
    assert story.by_category() == {"RENT": 48}


@pytest.mark.parametrize("late", [False, True])
def test_what_is_said_of_a_held_transaction_is_said_of_the_one_that_it_turns_out_to_be(
    story: Story, late: bool
) -> None:
    first = [transaction(name, "48", account_id="a1", original_description="RENT") for name in ("T", "S")]
    story.sync(*added(*first), *balance(account("a1")))
    story.edit(category="RENT")
    story.project(story.log.link("B"))
    again = [transaction(name, "48", account_id="b1", original_description="RENT") for name in ("U", "V")]
    story.project(story.log.sync("B", *added(*again), *balance(account("b1"))))
    reviews = {story.memory.rows[one.own_id].transaction_id: one for one in story.memory.reviews.values()}
    held = reviews["U"].own_id
    decision = Decision(reviews["U"].id.hex(), events.APPROVE_REVIEW, "ada", json.dumps({"own_id": OWN.hex()}))
    decided = (events.DECISION_MADE, catalogue.DECISION, codec.encode(decision))

    for is_edit in (not late, late):
        if is_edit:
            story.project(story.log.edit("B", held, "U", notes="whichever"))
        else:
            story.project(story.log.free("B", [decided], type="decision"))

    row = story.memory.rows[OWN]
    assert (row.item_id, row.transaction_id) == ("B", "U")
    assert user_field_values.values(row.user_fields) == {"category": "RENT", "notes": "whichever"}


def test_an_edit_said_twice_counts_once(story: Story) -> None:
    story.sync(*added(transaction("T")))
    record = story.log.edit("A", OWN, "T", category="RENT")

    assert story.project(record) == [events.TRANSACTION_MODIFIED]
    assert story.project(story.log.put(record.value, 1)) == []


@pytest.mark.parametrize("fields", [{"later": 1.5}, {"notes": "a\0"}])
def test_a_value_that_no_row_could_hold_sets_the_item_aside_with_nothing_lost(
    story: Story, fields: dict[str, Any]
) -> None:
    story.sync(*added(transaction("T")))

    story.project(story.log.free("A", edited(OWN, "T", **fields), type="edit"))

    assert [*story.memory.quarantined] == ["A"]
    assert len(story.memory.withheld) == 1
