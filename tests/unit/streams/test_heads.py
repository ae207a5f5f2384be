"""The gate over a batch: which heads it leaves, whom it makes due again."""

import os

from runtime.plaid.models import HISTORY_COMPLETE
from schemas.log import gate
from schemas.log.gate import Verdict
from schemas.log.records import Cause, Head
from streams.heads import HeadChanges, HeadRecord, ItemHead, apply_records


def record(
    offset: int, type_: str = gate.SYNC, *, parent: bytes | None = None, user: int = 1, **fields: object
) -> HeadRecord:
    given: dict[str, object] = {
        "id": os.urandom(16),
        "kind": gate.CHAINED,
        "type": type_,
        "parent": parent,
        "item_id": "item",
        "user": user,
        "at": offset * 1_000_000,
        "cause": Cause("webhook"),
        "key_generation": 1,
    }
    return HeadRecord(3, offset, Head(**(given | fields)))  # type: ignore[arg-type]


def root(offset: int = 0) -> HeadRecord:
    return record(offset, gate.LINK, item_state="active", fingerprints={"a": b"1"})


def followed(
    *records: HeadRecord, known: dict[str, ItemHead] | None = None, erased: tuple[int, ...] = ()
) -> HeadChanges:
    return apply_records(records, known or {}, erased=erased)


def test_a_chain_leaves_its_last_record_as_the_head() -> None:
    first = root()
    second = record(1, parent=first.head.id, next_cursor="c1", history_status="INITIAL_UPDATE_COMPLETE", hints_until=4)
    third = record(2, parent=second.head.id, fingerprints={"b": b"2"}, item_state="login_required", item_code="X")

    result = followed(first, second, third)

    item = result.heads["item"]
    assert (item.user, item.partition, item.hints_until) == (1, 3, 4)
    assert (item.head.id, item.head.offset, item.head.cursor) == (third.head.id, 2, "c1")
    assert (item.head.state, item.head.code, item.head.history_status) == (
        "login_required",
        "X",
        "INITIAL_UPDATE_COMPLETE",
    )
    assert item.head.fingerprints == {"a": b"1", "b": b"2"}
    assert item.head.at.timestamp() == 2.0
    assert result.verdicts == {Verdict.ACCEPTED: 3}
    assert not result.again


def test_a_record_whose_parent_is_not_the_head_is_skipped_and_its_item_due_again() -> None:
    first = root()
    second = record(1, parent=first.head.id, next_cursor="c1")
    rival = record(2, parent=first.head.id, next_cursor="c2")

    result = followed(first, second, rival)

    assert result.heads["item"].head.id == second.head.id
    assert result.again == {"item"}


def test_batches_give_what_the_whole_gives() -> None:
    chain = [root()]
    for offset in range(1, 6):
        chain.append(record(offset, parent=chain[-1].head.id, next_cursor=f"c{offset}"))

    known: dict[str, ItemHead] = {}
    for each in chain:
        known |= followed(each, known=known).heads

    assert known == followed(*chain).heads


def test_a_state_without_a_code_clears_the_code() -> None:
    first = record(0, gate.LINK, item_state="login_required", item_code="X")
    second = record(1, parent=first.head.id, item_state="active")

    assert followed(first, second).heads["item"].head.code is None


def test_after_an_unlink_nothing_is_chained_and_nothing_is_due_again() -> None:
    first = root()
    last = record(1, gate.UNLINK, parent=first.head.id, item_state="unlinked")
    late = record(2, parent=last.head.id)

    result = followed(first, last, late)

    assert result.heads["item"].head.unlinked
    assert result.heads["item"].head.id == last.head.id
    assert not result.again


def test_an_erasure_ends_all_that_follows_of_its_user_and_of_nobody_else() -> None:
    first = root()
    erasure = record(1, gate.ERASURE, kind=gate.FREE, item_id=None)
    late = record(2, parent=first.head.id)
    others = record(3, gate.LINK, user=2, item_id="other")

    result = followed(first, erasure, late, others)

    assert result.erased == [1]
    assert result.heads["item"].head.id == first.head.id
    assert "other" in result.heads
    assert followed(root(), erased=(1,)).heads == {}


def test_a_redrive_is_told_with_its_offset_and_an_edit_changes_nothing() -> None:
    first = root()
    edit = record(1, gate.EDIT, kind=gate.FREE)
    redrive = record(2, gate.REDRIVE, kind=gate.FREE)
    part = record(3, "part", kind=gate.PART, parent=first.head.id)

    result = followed(first, edit, redrive, part)

    assert result.redriven == {"item": 2}
    assert result.heads["item"].head.id == first.head.id
    assert result.verdicts == {Verdict.ACCEPTED: 3, Verdict.CHUNK: 1}


def test_a_whole_history_that_does_not_name_a_known_account_is_told_until_one_that_does() -> None:
    first = record(0, gate.LINK, fingerprints={"a": b"1", "b": b"1"})
    lacking = record(1, gate.RESTATED, parent=first.head.id, fingerprints={"a": b"1"}, history_status=HISTORY_COMPLETE)
    sync = record(2, parent=lacking.head.id, fingerprints={"a": b"2"})
    whole = record(
        3, gate.RESTATED, parent=sync.head.id, fingerprints={"a": b"2", "b": b"1"}, history_status=HISTORY_COMPLETE
    )
    rival = record(4, gate.RESTATED, parent=first.head.id, fingerprints={}, history_status=HISTORY_COMPLETE)

    assert followed(first).histories == {}
    assert followed(first, lacking, sync).histories == {"item": True}
    assert followed(first, lacking, sync, whole, rival).histories == {"item": False}


def test_a_history_that_plaid_does_not_call_complete_is_not_read_again_for_an_account() -> None:
    first = root()
    restated = record(1, gate.RESTATED, parent=first.head.id, history_status="INITIAL_UPDATE_COMPLETE")

    assert followed(first, restated).histories == {"item": False}


def test_an_item_of_another_user_is_not_taken_over() -> None:
    first = root()
    stolen = record(1, parent=first.head.id, user=2)

    result = followed(first, stolen)

    assert result.heads["item"].user == 1
    assert result.verdicts[Verdict.OTHER_USER] == 1
