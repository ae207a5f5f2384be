"""ItemQuarantine and redrive in the pure core: what is withheld, what a redrive frees, what stays when it fails."""

import json
from collections.abc import Collection

import pytest

from projections.decode.log_record import decode_record
from projections.events import public_events
from projections.fold import full_resync, redrive
from projections.gate.check import AcceptedRecord, Owners
from projections.gate.quarantine import QuarantineSpan
from projections.model.unit_of_work import FoldedRecord, UnitOfWork
from projections.publish import kafka_records
from sandbox.simulation.memory import projection_tables
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import events
from schemas.ids import event_id
from schemas.log import gate
from schemas.topics import PUSH
from tests.support.projections_log import Log, account, added, balance, modified, owners, removed, transaction
from tests.support.projections_log import restated as history


class Desk:
    """Owners whose users 500 and above have no key until somebody restores it."""

    restored = False

    def __call__(self, users: Collection[int]) -> Owners:
        found = owners(users)
        keys = {user: key for user, key in found.keys.items() if self.restored or user < 500}
        return Owners(keys, found.names)


def folded(log: Log, quarantined: dict[str, list[QuarantineSpan]] | None = None) -> MemoryProjections:
    """One batch a record, after quarantines that an older code left."""
    memory = MemoryProjections(owners, quarantined=quarantined)
    for record in log.records:
        memory.project([record])
    return memory


def at(memory: MemoryProjections, offset: int) -> FoldedRecord:
    [found] = [one for one in memory.folded if one.context.offset == offset]
    return found


def live(memory: MemoryProjections) -> set[str]:
    return {row.transaction_id for row in memory.rows.values() if row.removed_at is None}


QUARANTINED_AT_2 = {"A": [QuarantineSpan(2, None)]}


def story(*, redriven: bool = True) -> Log:
    """An Item with a sync, two that an older code could not read and a balance by hand, then a redrive at 5."""
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T", "40")))
    log.sync("A", *modified(transaction("T", "41")), *added(transaction("U")))
    log.sync("A", *modified(transaction("T", "42")), *removed("U"))
    log.free("A", balance(account(), realtime=True), type=gate.BALANCE)
    if redriven:
        log.redrive("A")
    return log


def test_what_a_redrive_frees_is_what_was_withheld() -> None:
    memory = folded(story(), QUARANTINED_AT_2)

    assert live(memory) == {"T"}
    assert memory.withheld == []
    assert memory.quarantined == {"A": [QuarantineSpan(2, 5)]}
    assert memory.verdicts == {"accepted": 5, "withheld": 3, "redriven": 1}
    assert memory.items["A"].gate.head == story().heads["A"]
    assert memory.items["A"].head_offset == 3


def test_the_events_stand_at_the_redrive_each_with_its_own_changesets_id() -> None:
    log = story()
    memory = folded(log, QUARANTINED_AT_2)

    redriven = at(memory, 5)
    assert [event.type for event in redriven.net_events] == [
        events.TRANSACTION_MODIFIED,
        events.TRANSACTION_ADDED,
        events.TRANSACTION_MODIFIED,
        events.TRANSACTION_REMOVED,
        events.BALANCE_UPDATED,
    ]
    changesets = [decode_record(record).head.id for record in log.records]
    said = [changesets[2], changesets[2], changesets[3], changesets[3], changesets[4]]
    published = [
        dict(outgoing.headers)
        for lane, found in kafka_records.build_records(kafka_records.changesets_with_events([redriven])).items()
        for outgoing in found
        if lane.topic is not PUSH
    ]
    assert {(one["tartan-position"], one["ce_id"]) for one in published} == {
        (f"5.{place}".encode(), event_id(changeset, event.type, event.entity).encode())
        for place, (changeset, event) in enumerate(zip(said, redriven.net_events, strict=True))
    }


def test_the_withheld_changesets_stand_at_their_own_places_without_events() -> None:
    memory = folded(story(), QUARANTINED_AT_2)

    freed = [at(memory, offset) for offset in (2, 3, 4)]
    assert [(one.redriven_by, one.net_events, one.type) for one in freed] == [
        (5, [], gate.SYNC),
        (5, [], gate.SYNC),
        (5, [], gate.BALANCE),
    ]
    assert [one.context.changeset_id for one in freed] == [
        decode_record(record).head.id for record in story().records[2:5]
    ]
    assert freed[0].counts == {events.TRANSACTION_MODIFIED: 1, events.TRANSACTION_ADDED: 1}
    assert {one.context.known_at for one in freed} == {at(memory, 5).context.known_at}
    assert at(memory, 5).redriven_by is None


def test_the_rows_are_those_of_the_redrive() -> None:
    memory = folded(story(), QUARANTINED_AT_2)

    [row] = [row for row in memory.rows.values() if row.transaction_id == "T"]
    known_at = at(memory, 5).context.known_at
    assert (row.first_changeset, row.last_changeset, row.known_at, row.version) == (1, 5, known_at, 3)
    assert {transfer.context.offset for transfer in memory.transfers} == {1, 5}


@pytest.mark.parametrize("cuts", [(6,), (1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (2, 4, 5, 6)])
def test_any_cut_around_a_redrive_gives_the_same(cuts: tuple[int, ...]) -> None:
    log = story()
    memory = MemoryProjections(owners, quarantined=QUARANTINED_AT_2)
    begin = 0
    for end in cuts:
        memory.project(log.records[begin:end])
        begin = end

    assert memory.full() == folded(log, QUARANTINED_AT_2).full()


def test_a_replay_with_the_stored_quarantines_gives_the_same() -> None:
    log = story()
    first = folded(log, QUARANTINED_AT_2)

    assert folded(log, first.quarantined).full() == first.full()


def test_a_link_that_was_withheld_is_the_root_when_it_is_redriven() -> None:
    log = story()

    memory = folded(log, {"A": [QuarantineSpan(0, None)]})

    assert memory.items["A"].gate.head == log.heads["A"]
    assert live(memory) == {"T"}
    assert memory.items["A"].linked_at == at(memory, 5).context.known_at


def test_a_poison_that_stays_one_quarantines_again_at_the_redrive_and_nothing_is_half_done() -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    log.sync("A", *added(transaction("good")))
    log.sync("A", keys=Log.stranger())
    log.redrive("A")

    memory = folded(log, QUARANTINED_AT_2)

    assert memory.quarantined == {"A": [QuarantineSpan(2, 4), QuarantineSpan(4, None)]}
    assert memory.reasons["A", 4].startswith("record 3: changeset ")
    assert memory.withheld == [("A", 2), ("A", 3)]
    assert live(memory) == {"T"}
    assert memory.items["A"].head_offset == 1
    assert at(memory, 4).net_events == []
    assert memory.verdicts["quarantined_again"] == 1


def test_what_failed_once_can_be_redriven_later_with_what_came_since() -> None:
    desk, log = Desk(), Log()
    log.link("A", 500)
    log.sync("A", *added(transaction("T")), user=500)
    log.redrive("A", 500)
    log.sync("A", *added(transaction("U")), user=500)
    memory = MemoryProjections(desk)
    memory.project(log.records)
    assert memory.quarantined == {"A": [QuarantineSpan(0, 2), QuarantineSpan(2, None)]}
    assert memory.withheld == [("A", 0), ("A", 1), ("A", 3)]

    desk.restored = True
    memory.project([log.redrive("A", 500)])

    assert memory.quarantined == {"A": [QuarantineSpan(0, 2), QuarantineSpan(2, 4)]}
    assert live(memory) == {"T", "U"}
    assert memory.withheld == []
    replayed = MemoryProjections(desk, quarantined=memory.quarantined)
    replayed.project(log.records)
    assert replayed.full() == memory.full()


def test_two_quarantines_of_an_item_in_one_batch() -> None:
    log = story()
    log.sync("A", keys=Log.stranger())
    log.sync("A", *added(transaction("V")))
    whole = MemoryProjections(owners, quarantined=QUARANTINED_AT_2)

    whole.project(log.records)

    assert whole.quarantined == {"A": [QuarantineSpan(2, 5), QuarantineSpan(6, None)]}
    assert whole.withheld == [("A", 6), ("A", 7)]
    assert whole.full() == folded(log, QUARANTINED_AT_2).full()


def test_a_redrive_of_an_item_that_is_not_quarantined_counts_and_changes_nothing() -> None:
    log = story(redriven=False)
    before = folded(log).full()
    log.redrive("A")
    log.redrive("B")

    memory = folded(log)

    after = memory.full()
    assert memory.verdicts["nothing_to_redrive"] == 2
    assert [at(memory, offset).net_events for offset in (5, 6)] == [[], []]
    assert {name: after[name] for name in before if name != "events"} == {
        name: rows for name, rows in before.items() if name != "events"
    }


def test_redriving_twice_is_redriving_once() -> None:
    log = story()
    once = folded(log, QUARANTINED_AT_2)
    log.put(log.records[5].value, 1)  # the same record again
    log.redrive("A")  # and another one

    twice = folded(log, QUARANTINED_AT_2)

    assert twice.verdicts["free_id_is_known"] == 1
    assert twice.rows == once.rows
    assert twice.quarantined == once.quarantined
    assert [one.net_events for one in twice.folded if one.context.offset > 5] == [[]]


def test_parts_that_were_withheld_belong_to_the_record_that_names_them() -> None:
    log = Log()
    log.link("A")
    kept = log.append("A", added(transaction("kept")), kind=gate.PART, type="part", parent=log.heads["A"], id=b"p" * 16)
    part = log.append("A", added(transaction("part")), kind=gate.PART, type="part", parent=log.heads["A"], id=b"q" * 16)
    log.sync("A", *added(transaction("rest")), parts=[b"p" * 16, b"q" * 16])
    log.redrive("A")

    memory = folded(log, {"A": [QuarantineSpan(part.offset, None)]})

    assert kept.offset < part.offset
    assert live(memory) == {"kept", "part", "rest"}
    assert memory.items["A"].chunks == {}


def test_parts_are_kept_aside_as_they_were_when_a_redrive_fails() -> None:
    log = Log()
    log.link("A")
    log.append("A", added(transaction("part")), kind=gate.PART, type="part", parent=log.heads["A"], id=b"p" * 16)
    log.sync("A", *added(transaction("rest")), parts=[b"p" * 16])
    log.sync("A", keys=Log.stranger())
    log.redrive("A")

    memory = folded(log, QUARANTINED_AT_2)

    assert list(memory.items["A"].chunks) == [b"p" * 16]
    assert live(memory) == set()


def test_a_withheld_free_record_counts_once_and_is_known_afterwards() -> None:
    log = Log()
    log.link("A")
    log.sync("A")
    said = balance(account(), realtime=True)
    for _ in range(2):
        log.free("A", said, type=gate.BALANCE, id=b"f" * 16)
    log.redrive("A")
    log.free("A", said, type=gate.BALANCE, id=b"f" * 16)

    memory = folded(log, QUARANTINED_AT_2)

    assert memory.verdicts["free_id_is_known"] == 2
    assert memory.accounts["A", "checking"].version == 1


def test_a_withheld_record_that_is_not_the_heads_child_vanishes() -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    log.sync("A", *added(transaction("late")), parent=b"another")
    log.heads["A"] = decode_record(log.records[1]).head.id
    log.sync("A", *added(transaction("U")))
    log.redrive("A")

    memory = folded(log, QUARANTINED_AT_2)

    assert live(memory) == {"T", "U"}
    assert memory.verdicts["parent_is_not_head"] == 1
    assert [one.context.offset for one in memory.folded if one.redriven_by] == [3]


def test_a_decision_that_was_withheld_is_made_at_the_redrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_resync, "REMOVALS_ALWAYS_MAX", 0)
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T"), transaction("U")))
    log.restate("A", *history(permille=0))
    log.decide("A", events.APPROVE_REMOVALS)
    log.redrive("A")

    memory = folded(log, QUARANTINED_AT_2)

    assert [event.type for event in at(memory, 4).net_events] == [events.TRANSACTION_REMOVED] * 2
    assert (live(memory), memory.items["A"].missing_rows) == (set(), 0)


def test_other_items_go_on_beside_a_quarantined_one() -> None:
    log = Log()
    log.link("A")
    log.link("B")
    log.sync("A", keys=Log.stranger())
    log.sync("B", *added(transaction("T")))
    log.redrive("A")
    log.sync("B", *added(transaction("U")))
    memory = MemoryProjections(owners)

    memory.project(log.records)

    assert live(memory) == {"T", "U"}
    assert memory.quarantined == {"A": [QuarantineSpan(2, 4), QuarantineSpan(4, None)]}
    assert memory.full() == folded(log).full()


def test_a_fold_that_fails_at_the_redrive_names_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    log = story()
    fold = redrive.fold

    def failing(work: UnitOfWork, record: AcceptedRecord) -> FoldedRecord:
        if record.log_record.head.id == decode_record(log.records[3]).head.id:
            raise ZeroDivisionError("with what the bank said")
        return fold(work, record)

    monkeypatch.setattr(redrive, "fold", failing)
    monkeypatch.setattr(projection_tables, "fold", failing)
    one_by_one, whole = folded(log), MemoryProjections(owners)
    whole.project(log.records)

    assert whole.quarantined == {"A": [QuarantineSpan(3, 5), QuarantineSpan(5, None)]}
    assert whole.reasons == {("A", 3): "ZeroDivisionError", ("A", 5): "record 3: ZeroDivisionError"}
    assert (whole.full(), whole.reasons) == (one_by_one.full(), one_by_one.reasons)


def test_the_blocks_of_a_redrive_tell_the_same_ids_when_they_are_read_again() -> None:
    memory = folded(story(), QUARANTINED_AT_2)

    told = at(memory, 5)
    again = told._replace(net_events=public_events.decode_block(told.block))
    assert kafka_records.build_records(kafka_records.changesets_with_events([again])) == kafka_records.build_records(
        kafka_records.changesets_with_events([told])
    )


def test_a_redrive_of_much_is_one_push_behind_which_a_browser_reads_again() -> None:
    log = Log()
    log.link("A")
    for begin in (0, 60):
        log.sync("A", *added(*(transaction(f"T{number}") for number in range(begin, begin + 60))))
    log.redrive("A")

    memory = folded(log, {"A": [QuarantineSpan(1, None)]})

    [pushes] = [
        found
        for lane, found in kafka_records.build_records(kafka_records.changesets_with_events(memory.folded)).items()
        if lane.topic is PUSH and any(b"transactions.changed" in one.value for one in found)
    ]
    [changed] = [one for one in pushes if b"transactions.changed" in one.value]
    assert json.loads(changed.value)["data"] == {"item_id": "A", "added": 120, "modified": 0, "removed": 0}
    assert dict(changed.headers)["tartan-position"] == b"3.119"
