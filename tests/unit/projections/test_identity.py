"""Who a transaction is: the rules one by one."""

import json
from typing import Any

import pytest

from projections.model.unit_of_work import Review, Row
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.log import gate
from schemas.log.records import Decision, Transaction
from schemas.log.records import Item as ItemWords
from tests.support.projections_log import (
    Event,
    Log,
    about_item,
    account,
    added,
    balance,
    modified,
    owners,
    removed,
    restated,
    transaction,
)

SHOP = {"original_description": "CORNER SHOP 12", "date": "2026-03-10"}


class Story:
    """One user's account, told by Items that are linked one after the other."""

    def __init__(self) -> None:
        self.log = Log()
        self.memory = MemoryProjections(owners)

    def link(self, item_id: str, **fields: Any) -> None:
        said = ItemWords(item_id, "active", institution_id="ins_1", institution_name="Bank")
        root = about_item(events.ITEM_LINKED, said) + balance(account(f"of-{item_id}", **fields))
        self._project(self.log.append(item_id, root, type=gate.LINK))

    def unlink(self, item_id: str) -> None:
        said = ItemWords(item_id, "unlinked", institution_id="ins_1", institution_name="Bank")
        self._project(self.log.append(item_id, about_item(events.ITEM_UNLINKED, said), type=gate.UNLINK))

    def say(self, item_id: str, *said: Event) -> list[str]:
        return self._project(self.log.sync(item_id, *said))

    def restate(self, item_id: str, *said: Event) -> list[str]:
        return self._project(self.log.restate(item_id, *said))

    def edit(self, row: Row, **fields: Any) -> None:
        self._project(self.log.edit(row.item_id, row.own_id, row.transaction_id, **fields))

    def decide(self, kind: str, review: Review, own_id: bytes | None = None) -> list[str]:
        detail = None if own_id is None else json.dumps({"own_id": own_id.hex()})
        said = codec.encode(Decision(review.id.hex(), kind, "ada", detail))
        event = (events.DECISION_MADE, catalogue.DECISION, said)
        return self._project(self.log.free(review.item_id, [event], type=gate.DECISION))

    def _project(self, *records: Any) -> list[str]:
        before = len(self.memory.folded)
        self.memory.project(records)
        assert not self.memory.quarantined
        return [
            event.type
            for one in self.memory.folded[before:]
            for event in one.net_events
            if event.type.startswith("transaction.")
        ]

    def row(self, transaction_id: str) -> Row:
        """The row that is shown under Plaid's id."""
        [row] = [row for row in self.memory.rows.values() if row.transaction_id == transaction_id]
        return row

    @property
    def shown(self) -> dict[str, str]:
        """Amounts of what is shown, by Plaid's id."""
        return {row.transaction_id: payload(row).amount for row in self.memory.rows.values() if row.is_shown}

    @property
    def open(self) -> list[Review]:
        return [one for one in self.memory.reviews.values() if one.state == "open"]

    @property
    def rules(self) -> dict[str, tuple[str, int]]:
        return {name: (one.rule, one.score) for (_, name), one in self.memory.links.items()}

    def counted(self) -> int:
        """What left all bank accounts, in units of the currency: pending and posted."""
        return sum(
            (credits_ - debits) // 10**8
            for (one, _), (debits, credits_) in self.memory.balances.items()
            if self.memory.meanings[one][1] == "bank"
        )


def payload(row: Row) -> Transaction:
    return codec.decode(Transaction, row.payload)


def at(item_id: str, transaction_id: str, amount: str = "5", **fields: Any) -> Transaction:
    return transaction(transaction_id, amount, account_id=f"of-{item_id}", **{**SHOP, **fields})


@pytest.fixture
def story() -> Story:
    made = Story()
    made.link("A")
    return made


def test_a_churned_transaction_goes_on_with_its_id_and_what_the_user_said(story: Story) -> None:
    story.say("A", *added(at("A", "a1")))
    own = story.row("a1").own_id
    story.edit(story.row("a1"), notes="for Bob")

    told = story.say("A", *removed("a1"), *added(at("A", "a2", name="Corner Shop Ltd")))

    assert told == [events.TRANSACTION_MODIFIED]
    assert (story.row("a2").own_id, story.counted(), story.rules["a2"]) == (own, 5, ("exact", 100))
    assert "for Bob" in str(story.row("a2").user_fields)
    assert story.say("A", *modified(at("A", "a2", "6"))) == [events.TRANSACTION_MODIFIED]
    assert story.counted() == 6


@pytest.mark.parametrize(
    ("amount", "date", "rule", "is_linked"),
    [
        ("40", "2026-03-12", "pending", True),  # as it was
        ("48", "2026-03-12", "pending", True),  # 20 % tip
        ("52", "2026-03-10", "pending", True),  # 30 % tip
        ("53", "2026-03-10", None, False),
        ("30", "2026-03-10", None, False),
        ("40", "2026-03-24", "pending", True),  # 14 days
        ("40", "2026-03-25", None, False),
    ],
)
def test_a_posted_transaction_that_plaid_did_not_link_finds_its_pending_one(
    story: Story, amount: str, date: str, rule: str | None, is_linked: bool
) -> None:
    story.say("A", *added(at("A", "p", "40", pending=True)))
    own = story.row("p").own_id

    told = story.say("A", *removed("p"), *added(at("A", "q", amount, date=date)))

    assert (story.row("q").own_id == own) is is_linked
    assert story.rules.get("q", (None, 0))[0] == rule
    assert (len(told), story.shown, story.counted()) == (1 if is_linked else 2, {"q": amount}, int(amount))


def test_of_two_pendings_that_may_have_posted_a_person_says_which(story: Story) -> None:
    story.say("A", *added(at("A", "p1", "40", pending=True), at("A", "p2", "41", pending=True)))
    first = story.row("p1").own_id

    told = story.say("A", *removed("p1", "p2"), *added(at("A", "q", "44", date="2026-03-11")))

    # No candidate counts any more, so it counts while a person is asked.
    assert (sorted(told), story.counted()) == ([events.TRANSACTION_ADDED, *[events.TRANSACTION_REMOVED] * 2], 44)
    [review] = story.open
    assert len(json.loads(review.candidates)) == 2
    assert story.decide(events.APPROVE_REVIEW, review) == []  # it has to say which
    assert sorted(story.decide(events.APPROVE_REVIEW, review, first)) == [
        events.TRANSACTION_ADDED,
        events.TRANSACTION_REMOVED,
    ]
    assert (story.row("q").own_id, story.shown, story.counted()) == (first, {"q": "44"}, 44)
    assert story.say("A", *modified(at("A", "q", "45", date="2026-03-11"))) == [events.TRANSACTION_MODIFIED]
    assert story.counted() == 45


def test_a_name_that_is_quite_another_one_is_no_churn(story: Story) -> None:
    story.say("A", *added(at("A", "a1")))

    told = story.say(
        "A", *removed("a1"), *added(at("A", "a2", original_description="AIRLINE TICKET", date="2026-03-11"))
    )

    assert sorted(told) == [events.TRANSACTION_ADDED, events.TRANSACTION_REMOVED]
    assert not story.memory.links
    assert not story.open


def test_an_account_that_comes_under_another_id_keeps_its_transactions(story: Story) -> None:
    story.say("A", *added(at("A", "a1"), at("A", "a2", "7")))
    before = {row.own_id for row in story.memory.rows.values()}

    told = story.say(
        "A", *balance(account("of-A-anew")), *removed("a1", "a2"), *added(at("A-anew", "b1"), at("A-anew", "b2", "7"))
    )

    assert told == [events.TRANSACTION_MODIFIED] * 2
    assert {row.own_id for row in story.memory.rows.values()} == before
    assert story.memory.accounts["A", "of-A-anew"].continues == ("A", "of-A")
    assert (story.shown, story.counted()) == ({"b1": "5", "b2": "7"}, 12)
    assert not story.memory.items["A"].has_linked_items


@pytest.mark.parametrize("differs", [{"mask": "9999"}, {"name": "Savings"}, {"subtype": "savings"}, {"mask": None}])
def test_accounts_that_do_not_look_the_same_are_two(story: Story, differs: dict[str, Any]) -> None:
    story.say("A", *added(at("A", "a1")))
    story.link("B", **differs)

    story.say("B", *added(at("B", "b1")))

    assert (story.counted(), len(story.shown)) == (10, 2)
    assert not story.memory.items["A"].has_linked_items


def test_a_second_link_moves_what_is_known_and_the_first_one_is_passed_over(story: Story) -> None:
    story.say("A", *added(at("A", "a1"), at("A", "a2", "7", original_description="BOOK STORE 9")))
    known = {row.own_id for row in story.memory.rows.values()}
    story.link("B")

    told = story.say(
        "B", *added(at("B", "b1"), at("B", "b2", "7", original_description="BOOK STORE #9", date="2026-03-11"))
    )

    assert told == [events.TRANSACTION_MODIFIED] * 2
    assert {row.own_id for row in story.memory.rows.values()} == known
    assert {row.item_id for row in story.memory.rows.values()} == {"B"}
    assert story.rules["b1"] == ("exact", 100)
    assert (story.rules["b2"][0], story.rules["b2"][1] >= 85) == ("near", True)
    assert story.say("A", *modified(at("A", "a1", "9")), *removed("a2")) == []
    assert (story.counted(), story.memory.folded[-1].not_effective) == (12, {"transaction.passed_over": 2})
    assert story.memory.items["A"].transaction_rows > 0


def test_what_the_first_item_tells_later_than_the_second_counts_once(story: Story) -> None:
    story.say("A", *added(at("A", "a0", "1")))
    story.link("B")
    story.say("B", *added(at("B", "b0", "1"), at("B", "b1")))

    told = story.say("A", *added(at("A", "a1")))

    assert (told, story.shown, story.counted()) == ([], {"b0": "1", "b1": "5"}, 6)
    # A second coffee of that day is another one: the first Item speaks of b1 already.
    assert story.say("A", *added(at("A", "a2"))) == [events.TRANSACTION_ADDED]
    assert story.say("B", *added(at("B", "b2"))) == [events.TRANSACTION_MODIFIED]
    assert (story.shown, story.counted()) == ({"b0": "1", "b1": "5", "b2": "5"}, 11)


@pytest.mark.parametrize("now_called", ["of-A", "A-again"], ids=["account", "account with another id"])
def test_what_the_first_item_tells_anew_after_a_lost_cursor_counts_once(story: Story, now_called: str) -> None:
    story.say("A", *added(at("A", "a1")))
    story.link("B")
    story.say("B", *added(at("B", "b1")))

    again = transaction("a1 again", "5", account_id=now_called, **SHOP)
    story.restate("A", *restated(again, accounts=[now_called]), *balance(account(now_called)))

    assert (story.shown, story.counted()) == ({"b1": "5"}, 5)
    assert story.say("A", *removed("a1 again")) == []
    assert story.shown == {"b1": "5"}


def test_what_an_unlinked_item_told_is_taken_back_by_the_one_that_still_speaks(story: Story) -> None:
    story.say("A", *added(at("A", "a1")))
    own = story.row("a1").own_id
    story.link("B")
    story.say("B", *added(at("B", "b1")))
    story.unlink("B")

    told = story.say("A", *modified(at("A", "a1", "9")))

    assert (told, story.shown, story.row("a1").own_id) == ([events.TRANSACTION_MODIFIED], {"a1": "9"}, own)
    assert story.say("A", *removed("a1")) == [events.TRANSACTION_REMOVED]
    assert story.counted() == 0


def test_twins_pair_off_and_wait_for_a_person_where_the_user_spoke_of_one(story: Story) -> None:
    story.say("A", *added(at("A", "a1"), at("A", "a2"), at("A", "a3", "7"), at("A", "a4", "7")))
    edited = story.row("a3")
    story.edit(edited, notes="for Bob")
    story.link("B")

    told = story.say("B", *added(*(at("B", f"b{number}", "5" if number < 3 else "7") for number in range(1, 5))))

    assert told == [events.TRANSACTION_MODIFIED] * 2
    assert story.counted() == 24
    first, second = sorted(story.open, key=lambda one: payload(story.memory.rows[one.own_id]).transaction_id)
    assert story.decide(events.APPROVE_REVIEW, first, edited.own_id) == [events.TRANSACTION_MODIFIED]
    assert (story.row("b3").own_id, story.counted()) == (edited.own_id, 24)
    assert story.decide(events.REJECT_REVIEW, second) == [events.TRANSACTION_ADDED]
    assert (story.counted(), story.open) == (31, [])
    assert story.decide(events.APPROVE_REVIEW, second) == []  # it has ended
    assert story.say("B", *modified(at("B", "b4", "7", name="Again"))) == [events.TRANSACTION_MODIFIED]
    assert not story.open


def test_a_review_ends_by_itself_when_the_bank_makes_it_clear(story: Story) -> None:
    story.say("A", *added(at("A", "a1", original_description="BUS LINE 4")))
    story.link("B")
    assert story.say("B", *added(at("B", "b1", original_description="COFFEE 77"))) == []
    [review] = story.open

    told = story.say("B", *added(at("B", "b2", original_description="BUS LINE 4")))

    assert sorted(told) == [events.TRANSACTION_ADDED, events.TRANSACTION_MODIFIED]
    assert story.memory.reviews[review.id].state == "settled"
    assert (story.shown, story.counted()) == ({"b1": "5", "b2": "5"}, 10)


def test_a_review_ends_by_itself_when_the_bank_takes_the_held_one_back(story: Story) -> None:
    story.say("A", *added(at("A", "a1", original_description="BUS LINE 4")))
    story.link("B")
    story.say("B", *added(at("B", "b1", original_description="COFFEE 77")))

    assert story.say("B", *removed("b1")) == []

    assert (story.open, story.shown) == ([], {"a1": "5"})
    assert story.say("B", *added(at("B", "b1", original_description="COFFEE 77"))) == []
    assert (len(story.open), story.counted()) == (1, 5)


def test_what_was_held_for_another_one_is_what_a_second_item_tells(story: Story) -> None:
    story.link("B")
    story.say("B", *added(at("B", "b1", "500")))
    assert story.say("A", *added(at("A", "a2", "600"))) == []  # an amendment of b1, as far as one can tell
    assert len(story.open) == 1

    told = story.say("B", *removed("b1"), *added(at("B", "b2", "600")))

    assert sorted(told) == [events.TRANSACTION_ADDED, events.TRANSACTION_REMOVED]
    assert (story.open, story.shown, story.counted()) == ([], {"b2": "600"}, 600)


def test_pendings_that_nobody_can_tell_apart_post_as_themselves(story: Story) -> None:
    story.say("A", *added(at("A", "p1", pending=True), at("A", "p2", pending=True)))
    known = {row.own_id for row in story.memory.rows.values()}
    posted = [at("A", name, date="2026-03-11") for name in ("q1", "q2")]

    assert story.say("A", *removed("p1", "p2"), *added(*posted)) == [events.TRANSACTION_MODIFIED] * 2

    assert {row.own_id for row in story.memory.rows.values()} == known
    assert story.counted() == 10


def test_a_person_says_which_of_two_pendings_posted_where_the_user_spoke_of_one(story: Story) -> None:
    story.say("A", *added(at("A", "p1", pending=True), at("A", "p2", pending=True)))
    story.edit(story.row("p2"), notes="for Bob")

    story.say("A", *removed("p1", "p2"), *added(at("A", "q1", date="2026-03-11")))

    assert (len(story.open), story.shown) == (1, {"q1": "5"})


def test_a_purchase_counts_while_a_person_is_asked_whether_its_note_goes_on(story: Story) -> None:
    story.say("A", *added(at("A", "t1", "52", original_description="ACME MARKET 0012")))
    story.edit(story.row("t1"), notes="for Bob")
    first = story.row("t1").own_id

    story.say("A", *removed("t1"), *added(at("A", "t2", "52", original_description="Acme Market")))

    [review] = story.open
    assert (story.shown, story.counted()) == ({"t2": "52"}, 52)
    story.decide(events.APPROVE_REVIEW, review)
    assert (story.open, story.shown, story.counted()) == ([], {"t2": "52"}, 52)
    assert (story.row("t2").own_id, story.row("t2").user_fields is None) == (first, False)


def test_what_is_held_counts_once_its_last_counted_candidate_is_gone(story: Story) -> None:
    story.say("A", *added(at("A", "a1", original_description="BUS LINE 4")))
    story.edit(story.row("a1"), notes="to work")
    story.link("B")
    story.say("B", *added(at("B", "b1", original_description="COFFEE 77")))
    assert (len(story.open), story.shown) == (1, {"a1": "5"})

    story.say("A", *removed("a1"))

    assert (story.shown, story.counted()) == ({"b1": "5"}, 5)
