"""The record of a pass: what it says, its id, and whether there is anything to say."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from schemas.encoding import codec
from schemas.errors import Quarantine
from schemas.events import ACTIVE, BALANCE_REPORTED, LOGIN_REQUIRED, TRANSACTION_ADDED, TRANSACTION_REMOVED
from schemas.log import changesets, gate
from schemas.log.changesets import user_keys
from schemas.log.records import Account, Cause, Removal, Transaction
from streams.sync import changeset
from streams.sync.changeset import Draft, RecordParameters, Subject, Tip
from streams.sync.pages import Change
from streams.sync.plaid_errors import ItemState

KEYS = user_keys(bytes(32), 1)
OTHER_KEYS = user_keys(b"\1" * 32, 1)
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SUBJECT = Subject("item", 4711, Cause("webhook", 1, 2, 3, ["r1"]), "ins_1", "Bank", hints_until=9, fetch_started_at=NOW)
ACCOUNT = Account("a", None, "Checking", None, "0000", "depository", "checking", current="12.5")
CHANGES = [
    Change(TRANSACTION_ADDED, Transaction("t1", "a", "1.5", "USD", None, False, None, "2026-01-01")),
    Change(TRANSACTION_REMOVED, Removal("t0", "a")),
]
PRINTS = {"a": changeset.fingerprint(ACCOUNT, KEYS)}
TIP = Tip(b"h" * 16, NOW, "c1", ACTIVE, None, "HISTORICAL_UPDATE_COMPLETE", PRINTS)


def draft(cursor: str = "c2", **fields: object) -> Draft:
    given = {"fingerprints": PRINTS, "cursor": cursor, "history_status": "HISTORICAL_UPDATE_COMPLETE"} | fields
    return Draft(gate.SYNC, given.pop("events", changeset.encode_transactions(CHANGES)), **given)  # type: ignore[arg-type]


def composed(
    content: Draft, tip: Tip = TIP, *, nonce: bytes = b"n" * 12, time: datetime = NOW
) -> changeset.SealedRecord:
    return changeset.compose(content, RecordParameters(SUBJECT, tip, KEYS, time, lambda: nonce))


def test_a_record_opens_to_what_was_said_and_follows_the_tip() -> None:
    events = changeset.encode_transactions(CHANGES) + changeset.encode_balances({"a": ACCOUNT})

    sealed = composed(draft(events=events, state=ItemState(LOGIN_REQUIRED, "X")))

    envelope = changesets.read(sealed.value)
    head = envelope.head
    decoded = [
        (event.type, codec.decode_event(event)) for event in codec.decode_events(changesets.unseal(envelope, KEYS))
    ]
    assert decoded == [(change.type, change.record) for change in CHANGES] + [(BALANCE_REPORTED, ACCOUNT)]
    assert (head.kind, head.type, head.parent, head.user, head.item_id) == ("chained", "sync", TIP.head, 4711, "item")
    assert (head.base_cursor, head.next_cursor, head.item_state, head.item_code) == ("c1", "c2", LOGIN_REQUIRED, "X")
    assert (head.at, head.hints_until, head.cause) == (1767323045678901, 9, SUBJECT.cause)
    assert head.counts == {TRANSACTION_ADDED: 1, TRANSACTION_REMOVED: 1, BALANCE_REPORTED: 1}
    assert sealed.key == b"4711"
    assert sealed.tip == Tip(sealed.id, NOW, "c2", LOGIN_REQUIRED, "X", "HISTORICAL_UPDATE_COMPLETE", PRINTS)


def test_the_same_content_has_one_id_on_one_tip_and_another_later_in_the_chain() -> None:
    first = composed(draft())

    assert composed(draft(), nonce=b"m" * 12, time=NOW + timedelta(days=1)).id == first.id
    assert composed(draft(), TIP._replace(head=b"x" * 16)).id != first.id
    assert composed(draft("c3")).id != first.id


def test_a_record_without_cursor_or_state_leaves_them_as_they_were() -> None:
    sealed = composed(Draft(gate.STATE, []))

    head = changesets.read(sealed.value).head
    assert (head.next_cursor, head.item_state, head.history_status) == ("c1", ACTIVE, "HISTORICAL_UPDATE_COMPLETE")
    assert sealed.tip._replace(head=TIP.head) == TIP


def test_a_record_that_is_too_large_is_refused() -> None:
    with pytest.raises(Quarantine, match=r"item item takes \d+ bytes, a record at most 100"):
        changeset.compose(draft(), RecordParameters(SUBJECT, TIP, KEYS, NOW, lambda: b"n" * 12, bytes_max=100))


def test_a_fingerprint_is_keyed_and_does_not_move_with_the_time_of_the_banks_look() -> None:
    looked = msgspec.structs.replace(ACCOUNT, last_updated_datetime="2026-01-01T00:00:00Z")

    assert changeset.fingerprint(looked, KEYS) == PRINTS["a"]
    assert changeset.fingerprint(msgspec.structs.replace(ACCOUNT, current="12.6"), KEYS) != PRINTS["a"]
    assert changeset.fingerprint(ACCOUNT, OTHER_KEYS) != PRINTS["a"]


def is_news(content: Draft, tip: Tip = TIP, *, now: datetime = NOW) -> bool:
    return changeset.is_news(tip, content, now=now)


def test_nothing_new_is_not_worth_a_record() -> None:
    balances = changeset.encode_balances({"a": ACCOUNT})

    assert not is_news(draft("c1", events=balances))
    assert not is_news(draft("c2", events=balances))
    assert not is_news(draft("c1", events=[], state=ItemState(ACTIVE)))
    assert not is_news(draft("c1", events=[], history_status=None))


def test_a_restated_history_is_news_even_where_it_holds_nothing_else() -> None:
    nothing = draft("c1", events=[])

    assert not is_news(nothing)
    assert is_news(nothing._replace(type=gate.RESTATED))


def test_a_new_cursor_alone_is_kept_once_a_day_and_the_first_one_at_once() -> None:
    empty = draft("c2", events=[])

    assert not is_news(empty, now=NOW + timedelta(hours=23))
    assert is_news(empty, now=NOW + timedelta(hours=24))
    assert is_news(empty, TIP._replace(cursor=None))


def test_changes_states_balances_and_the_end_of_the_history_are_news() -> None:
    assert is_news(draft())
    assert is_news(draft("c1", events=[], state=ItemState(LOGIN_REQUIRED, "X")))
    assert is_news(draft("c1", events=[], state=ItemState(ACTIVE, "NEW_ACCOUNTS_AVAILABLE")))
    assert is_news(draft("c1", events=[], state=ItemState(ACTIVE, from_webhook=True)))
    assert is_news(draft("c1", events=[], fingerprints={"a": b"other"}))
    assert is_news(draft("c1", events=[], fingerprints={"b": b"new"}))
    assert is_news(draft("c1", events=[]), TIP._replace(history_status="INITIAL_UPDATE_COMPLETE"))
