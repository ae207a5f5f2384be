"""Properties of item_quarantine, redrive, restated histories and decisions over any history, on the pure core."""

from collections import Counter, defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projections.events import public_events
from projections.fold import full_resync
from projections.model.unit_of_work import NetEvent
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.encoding import codec
from schemas.ids import event_id
from schemas.log.records import Transaction
from tests.support.projections_log import owners
from tests.support.projections_memory import fold_batches
from tests.support.projections_trouble import FEW, Trouble, troubles

cuts_of = st.lists(st.integers(0, 100), max_size=8)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_resync, "REMOVALS_ALWAYS_MAX", FEW)


def folded(trouble: Trouble, cuts: list[int], *, first: MemoryProjections | None = None) -> MemoryProjections:
    """The whole log in batches; a rebuild begins with the quarantines of the memory that it repeats."""
    memory = MemoryProjections(owners, quarantined=first.quarantined if first else trouble.quarantined)
    return fold_batches(trouble.log.records, cuts, memory=memory)


@given(troubles, cuts_of)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_into_batches_gives_the_same(trouble: Trouble, cuts: list[int]) -> None:
    whole, one_by_one = folded(trouble, []), folded(trouble, list(range(len(trouble.log.records))))

    assert folded(trouble, cuts).full() == whole.full() == one_by_one.full()
    assert whole.reasons == one_by_one.reasons


@given(troubles, cuts_of)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_rebuild_with_the_stored_quarantines_gives_the_same(trouble: Trouble, cuts: list[int]) -> None:
    first = folded(trouble, [])

    rebuilt = folded(trouble, cuts, first=first)

    assert rebuilt.full() == first.full()
    assert rebuilt.reasons == {}


@given(troubles, cuts_of)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_record_is_folded_once_or_withheld(trouble: Trouble, cuts: list[int]) -> None:
    memory = folded(trouble, cuts)

    places = Counter(one.context.offset for one in memory.folded)
    places.update(offset for _, offset in memory.withheld)
    assert not places or max(places.values()) == 1
    for item, offset in memory.withheld:
        assert any(
            quarantined.first <= offset and (quarantined.redrive is None or quarantined.redrive > quarantined.first)
            for quarantined in memory.quarantined[item]
        )
        assert any(quarantined.redrive is None for quarantined in memory.quarantined[item])
    ids = [
        event_id(bytes.fromhex(said), event.type, event.entity)
        for one in memory.folded
        for event in one.net_events
        for said in [_said_by(event)]
    ]
    assert len(ids) == len(set(ids))


@given(troubles, cuts_of)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_waits_is_counted_and_lives(trouble: Trouble, cuts: list[int]) -> None:
    memory = folded(trouble, cuts)

    waiting: dict[str, int] = defaultdict(int)
    for row in memory.rows.values():
        if row.missing_since_offset is not None:
            assert row.removed_at is None
            waiting[row.item_id] += 1
    assert waiting == {item.item_id: item.missing_rows for item in memory.items.values() if item.missing_rows}
    assert {name for name, item in memory.items.items() if item.missing_changeset_id is not None} == set(waiting)


@given(troubles, cuts_of)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_ledger_says_what_the_rows_say(trouble: Trouble, cuts: list[int]) -> None:
    memory = folded(trouble, cuts)

    moved: Counter[bytes] = Counter()
    last: dict[bytes, int] = {}
    for transfer in sorted(memory.transfers, key=lambda one: (one.own_id, one.number)):
        moved[transfer.own_id] += -transfer.amount if transfer.reverses is not None else transfer.amount
        last[transfer.own_id] = transfer.number
    for row in memory.rows.values():
        # What a review holds was never posted: the accounts of these Items look the same.
        assert last.get(row.own_id, 0) == row.transfers
        assert (moved[row.own_id] == 0) is (not row.is_shown or not _amount(row.payload))


def _said_by(event: NetEvent) -> str:
    return public_events.changeset_id_of(event).hex()


def _amount(payload: bytes) -> float:
    return float(codec.decode(Transaction, payload).amount)
