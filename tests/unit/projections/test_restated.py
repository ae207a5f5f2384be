"""A restated history and the decisions about it, rule by rule."""

import msgspec
import pytest

from projections.events import public_events
from projections.fold.full_resync import REMOVALS_ALWAYS_MAX
from projections.gate.check import Owners
from projections.model.unit_of_work import ItemRow, Row
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.log import gate
from schemas.log.records import Decision, Transaction
from tests.support.projections_log import (
    Event,
    Log,
    account,
    added,
    balance,
    modified,
    owners,
    removed,
    restated,
    transaction,
)

APPROVE, REJECT = events.APPROVE_REMOVALS, events.REJECT_REMOVALS


class Story:
    """An Item with a history, and what becomes of it, one batch a record."""

    def __init__(self) -> None:
        self.log = Log()
        self.memory = MemoryProjections(owners)
        self.project(self.log.link("A"))

    def project(self, *records: object) -> list[str]:
        before = len(self.memory.folded)
        self.memory.project(records)  # type: ignore[arg-type]
        return [event.type for one in self.memory.folded[before:] for event in one.net_events]

    def say(self, *said: Event) -> list[str]:
        return self.project(self.log.sync("A", *said))

    def restate(self, *said: Event) -> list[str]:
        return self.project(self.log.restate("A", *said))

    def decide(self, decision: str, subject: bytes | None = None) -> list[str]:
        return self.project(self.log.decide("A", decision, subject or self.item.missing_changeset_id))

    @property
    def item(self) -> ItemRow:
        return self.memory.items["A"]

    def row(self, transaction_id: str) -> Row:
        [row] = [row for row in self.memory.rows.values() if row.transaction_id == transaction_id]
        return row

    def live(self) -> set[str]:
        return {row.transaction_id for row in self.memory.rows.values() if row.removed_at is None}

    def missing(self) -> set[str]:
        return {row.transaction_id for row in self.memory.rows.values() if row.missing_since_offset is not None}


@pytest.fixture
def story() -> Story:
    return Story()


def many(count: int, first: int = 0) -> list[Transaction]:
    return [transaction(f"T{number}") for number in range(first, first + count)]


def withheld(story: Story, known: int = 40, named: int = 10, pending: str = "") -> bytes:
    """Let `known - named` of the known transactions wait for a decision; gives the decision's subject."""
    rows = [msgspec.structs.replace(row, pending=row.transaction_id == pending) for row in many(known)]
    story.say(*added(*rows))
    assert story.restate(*restated(*many(named), permille=200)) == []
    assert story.item.missing_changeset_id == story.log.heads["A"]
    return story.log.heads["A"]


def test_what_a_whole_history_does_not_name_is_removed(story: Story) -> None:
    story.say(*added(transaction("T", "40"), transaction("U", "7")))

    assert story.restate(*restated(transaction("T", "40"))) == [events.TRANSACTION_REMOVED]

    assert story.live() == {"T"}
    assert [(one.amount // 10**8, one.reverses) for one in story.memory.transfers] == [(40, None), (7, None), (7, 1)]
    assert story.row("U").last_changeset == 2


def test_a_history_that_names_all_changes_nothing(story: Story) -> None:
    said = [transaction("T"), transaction("U")]
    story.say(*added(*said))

    assert story.restate(*restated(*said)) == []

    assert {row.version for row in story.memory.rows.values()} == {1}


def test_a_history_adds_and_changes_what_was_never_told(story: Story) -> None:
    story.say(*added(transaction("T", "40")))

    kinds = story.restate(*restated(transaction("T", "41"), transaction("V")))

    assert kinds == [events.TRANSACTION_MODIFIED, events.TRANSACTION_ADDED]
    assert story.live() == {"T", "V"}


def test_a_transaction_that_posted_meanwhile_goes_on_in_the_row_of_its_pending_one(story: Story) -> None:
    story.say(*added(transaction("P", pending=True)))
    own_id = story.row("P").own_id

    assert story.restate(*restated(transaction("T", pending_transaction_id="P"))) == [events.TRANSACTION_MODIFIED]

    assert story.row("T").own_id == own_id


def test_a_pending_one_whose_posted_one_has_a_row_already_is_removed(story: Story) -> None:
    story.say(*added(transaction("P", pending=True), transaction("T")))

    kinds = story.restate(*restated(transaction("T", pending_transaction_id="P")))

    assert sorted(kinds) == [events.TRANSACTION_MODIFIED, events.TRANSACTION_REMOVED]
    assert story.live() == {"T"}


def test_a_removed_transaction_that_a_history_names_comes_back(story: Story) -> None:
    story.say(*added(transaction("T")))
    story.say(*removed("T"))

    assert story.restate(*restated(transaction("T"))) == [events.TRANSACTION_ADDED]


@pytest.mark.parametrize(
    ("fields", "since", "until"),
    [
        ({"date": "2026-02-28"}, "2026-03-01", None),
        ({"date": "2026-03-02"}, None, "2026-03-01"),
        ({"account_id": "another"}, None, None),
    ],
)
def test_what_lies_outside_of_a_history_stays(
    story: Story, fields: dict[str, str], since: str | None, until: str | None
) -> None:
    story.say(*added(transaction("in"), transaction("out", **fields)))

    story.restate(*restated(since=since, until=until))

    assert story.live() == {"out"}


def test_both_bounds_of_a_history_belong_to_it(story: Story) -> None:
    story.say(*added(transaction("first", date="2026-03-01"), transaction("last", date="2026-03-31")))

    story.restate(*restated(since="2026-03-01", until="2026-03-31"))

    assert story.live() == set()


def test_an_incomplete_history_removes_nothing_and_tells_the_rest(story: Story) -> None:
    story.say(*added(transaction("T"), transaction("U")))

    kinds = story.restate(*restated(transaction("T", "11"), transaction("V"), complete=False, permille=0))

    assert kinds == [events.TRANSACTION_MODIFIED, events.TRANSACTION_ADDED]
    assert story.live() == {"T", "U", "V"}
    assert story.missing() == set()


def test_a_history_of_another_item_touches_nothing(story: Story) -> None:
    story.project(story.log.link("B"), story.log.sync("B", *added(transaction("T"))))

    story.restate(*restated())

    assert story.live() == {"T"}


def test_the_first_form_of_a_history_removes_whatever_the_share(story: Story) -> None:
    story.say(*added(*many(40)))
    plain = {"account_ids": ["checking"], "since": None, "until": None, "complete": True}
    first_form = codec.encoder(catalogue.HISTORY_1)(plain)

    story.restate((events.HISTORY_RESTATED, catalogue.HISTORY_1, first_form))

    assert story.live() == set()


def test_a_restated_history_is_a_sync_and_all_of_it_has_effect(story: Story) -> None:
    story.restate(*restated(), *balance(account()))

    assert story.item.last_sync_at == story.memory.folded[-1].context.known_at
    assert story.memory.folded[-1].not_effective == {}
    assert ("A", "checking") in story.memory.accounts


@pytest.mark.parametrize(("said", "match"), [(restated(since="soon"), "no date"), (restated() * 2, "two histories")])
def test_a_history_that_cannot_be_read_quarantines_its_item(story: Story, said: list[Event], match: str) -> None:
    story.say(*added(transaction("T")))

    story.restate(*said)

    assert match in story.memory.reasons["A", 2]
    assert story.live() == {"T"}


def test_too_many_removals_wait_and_all_else_counts(story: Story) -> None:
    story.say(*added(*many(40)))

    kinds = story.restate(*restated(*many(10), transaction("new"), permille=200))

    assert kinds == [events.TRANSACTION_ADDED]
    assert len(story.live()) == 41
    assert story.missing() == {one.transaction_id for one in many(30, 10)}
    assert {row.missing_since_offset for row in story.memory.rows.values()} == {None, 2}
    assert (story.item.missing_rows, story.item.missing_changeset_id) == (30, story.log.heads["A"])
    assert {row.version for row in story.memory.rows.values()} == {1}


@pytest.mark.parametrize(
    ("known", "gone", "waits"), [(REMOVALS_ALWAYS_MAX, REMOVALS_ALWAYS_MAX, 0), (11, 11, 11), (55, 11, 0), (54, 11, 11)]
)
def test_a_few_removals_or_a_small_share_need_no_person(story: Story, known: int, gone: int, waits: int) -> None:
    story.say(*added(*many(known)))

    story.restate(*restated(*many(known - gone), permille=200))

    assert story.item.missing_rows == waits
    assert len(story.live()) == (known if waits else known - gone)


def test_the_share_is_of_what_was_known_in_the_window(story: Story) -> None:
    story.say(*added(*many(12), *(transaction(f"old{number}", date="2020-01-01") for number in range(100))))

    story.restate(*restated(since="2026-01-01", permille=500))

    assert story.item.missing_rows == 12


@pytest.mark.parametrize(
    ("word", "kinds", "lives"),
    [
        (modified(transaction("T20")), [], True),
        (modified(transaction("T20", "11")), [events.TRANSACTION_MODIFIED], True),
        (removed("T20"), [events.TRANSACTION_REMOVED], False),
        (restated(transaction("T20"), complete=False), [], True),
    ],
)
def test_any_word_of_the_bank_takes_a_mark_away(story: Story, word: list[Event], kinds: list[str], lives: bool) -> None:
    subject = withheld(story)

    assert story.say(*word) == kinds

    assert story.row("T20").missing_since_offset is None
    assert (story.row("T20").removed_at is None) is lives
    assert (story.item.missing_rows, story.item.missing_changeset_id) == (29, subject)
    assert len(story.missing()) == 29


def test_a_posted_transaction_takes_the_mark_of_its_pending_one_away(story: Story) -> None:
    withheld(story, pending="T20")

    story.say(*added(transaction("posted", pending_transaction_id="T20")))

    assert story.row("posted").missing_since_offset is None
    assert story.item.missing_rows == 29


def test_an_approval_removes_what_still_waits(story: Story) -> None:
    withheld(story)
    story.say(*modified(transaction("T20")))

    assert story.decide(APPROVE) == [events.TRANSACTION_REMOVED] * 29

    assert story.live() == {*(f"T{number}" for number in range(10)), "T20"}
    assert (story.item.missing_rows, story.item.missing_changeset_id) == (0, None)
    assert story.missing() == set()
    assert story.memory.folded[-1].not_effective == {}
    assert [transfer.reverses for transfer in story.memory.transfers[-29:]] == [1] * 29
    said = {event.data for event in story.memory.folded[-1].net_events}
    assert all(public_events.read_transaction(data).version == 2 for data in said)


def test_a_rejection_keeps_what_waits(story: Story) -> None:
    withheld(story)

    assert story.decide(REJECT) == []

    assert len(story.live()) == 40
    assert (story.item.missing_rows, story.item.missing_changeset_id, story.missing()) == (0, None, set())


@pytest.mark.parametrize("decision", [APPROVE, REJECT])
def test_a_decision_about_what_does_not_wait_has_no_effect(story: Story, decision: str) -> None:
    subject = withheld(story)

    assert story.decide(decision, b"another") == []
    story.project(story.log.free("A", [_decision(subject, "something.else")], type=gate.DECISION))

    assert [one.not_effective for one in story.memory.folded[-2:]] == [{events.DECISION_MADE: 1}] * 2
    assert story.item.missing_rows == 30


def test_a_second_decision_has_no_effect(story: Story) -> None:
    subject = withheld(story)
    story.decide(REJECT)

    assert story.decide(APPROVE, subject) == []

    assert len(story.live()) == 40


def test_a_decision_about_no_item_has_no_effect_and_is_not_opened(story: Story) -> None:
    story.project(
        story.log.free(
            None, [_decision(b"x", APPROVE)], type=gate.DECISION, keys=Log.stranger(), counts={events.DECISION_MADE: 1}
        )
    )

    assert story.memory.folded[-1].not_effective == {events.DECISION_MADE: 1}


def test_when_the_bank_named_all_again_nothing_waits(story: Story) -> None:
    subject = withheld(story)
    story.say(*modified(*many(30, 10)))

    assert (story.item.missing_rows, story.item.missing_changeset_id) == (0, None)
    assert story.decide(APPROVE, subject) == []
    assert len(story.live()) == 40


def test_what_waited_joins_the_decision_about_a_later_history(story: Story) -> None:
    first = withheld(story)
    story.say(*added(*(transaction(f"U{number}", date="2026-05-01") for number in range(20))))

    story.restate(*restated(since="2026-04-01", permille=0))

    assert (story.item.missing_rows, story.item.missing_changeset_id) == (50, story.log.heads["A"])
    assert story.decide(APPROVE, first) == []
    assert len(story.decide(APPROVE)) == 50


def test_what_waits_outside_of_a_later_history_goes_on_waiting(story: Story) -> None:
    first = withheld(story)

    story.restate(*restated(*many(10), since="2026-04-01"))

    assert (story.item.missing_rows, story.item.missing_changeset_id) == (30, first)


def test_a_later_history_that_may_remove_removes_what_waited(story: Story) -> None:
    withheld(story)

    assert story.restate(*restated(*many(35))) == [events.TRANSACTION_REMOVED] * 5

    assert len(story.live()) == 35
    assert (story.item.missing_rows, story.item.missing_changeset_id) == (0, None)


def test_removals_stand_in_the_order_of_own_ids(story: Story) -> None:
    story.say(*added(*many(9)))

    story.restate(*restated())

    told = [event.entity for event in story.memory.folded[-1].net_events]
    assert told == sorted(told)
    assert len(told) == 9


def _decision(subject: bytes, decision: str) -> Event:
    return (events.DECISION_MADE, catalogue.DECISION, codec.encode(Decision(subject.hex(), decision)))


def test_a_decision_about_a_user_whose_keys_are_destroyed_removes_nothing_and_quarantines_nothing(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    withheld(story)
    monkeypatch.setattr(
        story.memory, "_owners", lambda users: Owners(dict.fromkeys(users), dict.fromkeys(users, ("t", "u")))
    )

    assert story.decide(APPROVE) == []

    assert len(story.live()) == 40
    assert (story.memory.quarantined, story.memory.withheld) == ({}, [])
