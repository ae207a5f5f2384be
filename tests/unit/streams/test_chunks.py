"""Updates larger than a record: how they are cut, and that a reader gets the same events whatever the cut."""

import random
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.encoding import codec
from schemas.errors import Quarantine, Retry
from schemas.events import ACTIVE, TRANSACTION_ADDED
from schemas.log import changesets, gate
from schemas.log.gate import ItemGate, Verdict
from schemas.log.records import Cause, Head, Transaction
from streams.sync import changeset
from streams.sync.changeset import ChunkedChangeset, Draft, Events, RecordParameters, Subject, Tip
from streams.sync.pages import Change
from tests.support.streams_memory import KEYS, PAGE, Memory, fetched

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SUBJECT = Subject("item", 4711, Cause("webhook", 1, 2, 3, ["r1"]), fetch_started_at=NOW)
TIP = Tip(b"h" * 16, NOW, "c1", ACTIVE, None, "HISTORICAL_UPDATE_COMPLETE", {})
RECORD_BYTES = 2048
PARAMETERS = RecordParameters(SUBJECT, TIP, KEYS, NOW, lambda: b"n" * 12)


def row(number: int, characters: int = 0) -> Transaction:
    """A transaction with so many random characters, which no compression makes fewer than half."""
    name = "".join(random.Random(number).choices("0123456789abcdefghijklmnopqrstuvwxyz", k=characters))
    return Transaction(f"t{number}", "a", "1.5", "USD", None, False, None, "2026-01-01", name=name)


def events(*rows: Transaction) -> Events:
    return changeset.encode_transactions([Change(TRANSACTION_ADDED, item) for item in rows])


def composed(
    content: Events, *, cursor: str = "c2", bytes_max: int = RECORD_BYTES, time: datetime = NOW
) -> ChunkedChangeset:
    nonces = count(time.day)
    parameters = RecordParameters(SUBJECT, TIP, KEYS, time, lambda: next(nonces).to_bytes(12, "big"), bytes_max)
    return changeset.compose_in_chunks(Draft(gate.SYNC, content, cursor=cursor), parameters)


def values(changes: ChunkedChangeset) -> list[bytes]:
    """The records in the order in which they are appended."""
    return [*(part.value for part in changes.chunks), changes.record.value]


def read(records: list[bytes]) -> Events:
    """What a reader gets of one update: the named parts in their order, then the record's own events."""
    envelopes = {changesets.read(value).head.id: changesets.read(value) for value in records}
    last = changesets.read(records[-1]).head
    blocks = [changesets.unseal(envelopes[item], KEYS) for item in [*last.parts, last.id]]
    return [(event.type, event.schema, event.data) for block in blocks for event in codec.decode_events(block)]


def test_what_fits_one_record_has_no_parts_and_the_id_that_it_always_had() -> None:
    content = events(row(1), row(2))

    changes = composed(content)

    alone = changeset.compose(Draft(gate.SYNC, content, cursor="c2"), PARAMETERS)
    assert (changes.chunks, changes.record.id, changes.record.tip) == ([], alone.id, alone.tip)


def test_what_does_not_fit_is_cut_in_order_and_the_last_record_names_the_parts() -> None:
    content = events(*(row(number, 60) for number in range(400)))

    changes = composed(content)

    heads = [changesets.read(value).head for value in values(changes)]
    assert len(changes.chunks) > 5
    assert {(head.kind, head.type, head.parent) for head in heads[:-1]} == {(gate.PART, gate.PART, TIP.head)}
    assert [head.id for head in heads[:-1]] == heads[-1].parts == [part.id for part in changes.chunks]
    assert all(len(value) <= RECORD_BYTES for value in values(changes))
    assert read(values(changes)) == content


def test_parts_move_neither_cursor_nor_state_and_the_last_record_counts_them_all() -> None:
    changes = composed(events(*(row(number, 60) for number in range(200))))

    *halves, last = (changesets.read(value).head for value in values(changes))
    assert {(head.base_cursor, head.next_cursor, head.item_state, head.history_status) for head in halves} == {
        (None, None, None, None)
    }
    assert sum(head.counts[TRANSACTION_ADDED] for head in halves) < 200
    assert (last.next_cursor, last.item_state) == ("c2", ACTIVE)
    assert last.counts == changes.record.counts == {TRANSACTION_ADDED: 200}


def test_the_gate_takes_the_parts_of_the_record_that_it_accepts_and_no_others() -> None:
    changes = composed(events(*(row(number, 60) for number in range(200))))
    left = composed(events(*(row(number, 60) for number in range(900, 1000))))

    state, verdicts = ItemGate(head=TIP.head, user=4711), []
    for value in [left.chunks[0].value, *values(changes)]:
        head: Head = changesets.read(value).head
        verdicts.append(gate.decide(head, state, erased=False, known=False))
        state = gate.advance(head, state, verdicts[-1])

    assert verdicts == [Verdict.CHUNK] * (1 + len(changes.chunks)) + [Verdict.ACCEPTED]
    assert (state.head, state.parts) == (changes.record.id, ())


def test_the_same_update_has_the_same_ids_at_another_time_and_another_update_shares_its_parts() -> None:
    content = events(*(row(number, 60) for number in range(200)))

    first, again, further = (
        composed(content),
        composed(content, time=NOW + timedelta(days=1)),
        composed(content, cursor="c3"),
    )

    assert (
        [part.id for part in again.chunks] == [part.id for part in first.chunks] == [part.id for part in further.chunks]
    )
    assert again.record.id == first.record.id != further.record.id
    assert values(again) != values(first)


def test_a_records_id_covers_its_parts_and_their_order() -> None:
    content = events(row(1))
    changes = composed(events(*(row(number, 60) for number in range(200))))

    def named(*which: changeset.Chunk) -> bytes:
        draft = Draft(gate.SYNC, content, cursor="c2")
        return changeset.compose(draft, PARAMETERS, which).id

    item, two = changes.chunks[:2]
    assert len({named(), named(item), named(two), named(item, two), named(two, item)}) == 5


def test_what_hardly_compresses_is_halved_until_it_fits() -> None:
    content = events(*(row(number, 700) for number in range(40)))

    changes = composed(content)

    assert all(len(value) <= RECORD_BYTES for value in values(changes))
    assert read(values(changes)) == content


def test_one_event_larger_than_a_record_is_refused() -> None:
    with pytest.raises(Quarantine, match="a record at most 2048"):
        composed(events(row(1), row(2, 6_000), row(3)))


def test_a_head_larger_than_a_record_is_refused() -> None:
    with pytest.raises(Quarantine, match="a record at most 100"):
        composed([], bytes_max=100)


@given(st.lists(st.integers(0, 900), min_size=1, max_size=60), st.integers(RECORD_BYTES, 3 * RECORD_BYTES))
def test_any_cut_gives_a_reader_the_same_events_within_the_limit(sizes: list[int], bytes_max: int) -> None:
    content = events(*(row(number, characters) for number, characters in enumerate(sizes)))

    changes = composed(content, bytes_max=bytes_max)

    assert read(values(changes)) == content
    assert max(map(len, values(changes))) <= bytes_max
    assert bool(changes.chunks) == (len(composed(content, bytes_max=2**20).record.value) > bytes_max)


async def test_a_pass_appends_the_parts_first_and_waits_for_the_record_that_names_them() -> None:
    memory = Memory(answers=[PAGE._replace(added=[row(number, 60) for number in range(300)])])

    result = await fetched(memory, world={"record_bytes_max": RECORD_BYTES})

    kinds = [head.kind for head in memory.heads]
    assert kinds == [gate.PART] * (len(kinds) - 1) + [gate.CHAINED]
    assert memory.heads[-1].parts == [head.id for head in memory.heads[:-1]]
    assert result is not None
    assert (result.outcome, result.added, result.wait_offset) == ("appended", 300, 100 + len(kinds))


async def test_a_pass_that_dies_between_its_parts_leaves_what_the_next_one_makes_again() -> None:
    page = PAGE._replace(added=[row(number, 60) for number in range(300)])
    left = Memory(answers=[page])

    async def fail_at_the_third() -> None:
        if len(left.heads) == 2:
            raise Retry("Kafka is away")

    left.before_append = fail_at_the_third
    failed = await fetched(left, world={"record_bytes_max": RECORD_BYTES})
    again = Memory(answers=[page])
    await fetched(again, world={"record_bytes_max": RECORD_BYTES})

    assert failed is not None
    assert (failed.outcome, failed.done, failed.wait_offset, failed.added) == ("failed", False, None, 0)
    assert [head.kind for head in left.heads] == [gate.PART] * 2
    assert [head.id for head in again.heads[:2]] == [head.id for head in left.heads]


async def test_an_event_that_fits_no_record_quarantines_its_item_and_appends_nothing() -> None:
    memory = Memory(answers=[PAGE._replace(added=[row(1), row(2, 6_000)])])

    result = await fetched(memory, world={"record_bytes_max": RECORD_BYTES})

    assert memory.heads == []
    assert result is not None
    assert (result.stopped, result.error and result.error["code"]) == ("quarantined", "unrecordable")


async def test_a_link_whose_accounts_fill_more_than_a_record_has_parts_too() -> None:
    names = [f"account-{number}-{row(number, 60).name}" for number in range(40)]
    memory = Memory(bank_accounts=[names])

    await fetched(memory, head=None, world={"record_bytes_max": 4 * RECORD_BYTES})

    link = next(head for head in memory.heads if head.kind == gate.CHAINED)
    state, accepted = ItemGate(), []
    for head in memory.heads:
        verdict = gate.decide(head, state, erased=False, known=False)
        state = gate.advance(head, state, verdict)
        accepted += [head.type] if verdict is Verdict.ACCEPTED else []
    assert link.type == gate.LINK
    assert accepted == [gate.LINK, gate.SYNC]


def test_the_tip_after_parts_is_that_of_the_record_that_names_them() -> None:
    changes = composed(events(*(row(number, 60) for number in range(200))))

    assert changes.record.tip == TIP._replace(head=changes.record.id, at=NOW, cursor="c2")
