"""A simulation that finds nothing may be blind: deliberate defects must make some of its seeds fail."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import msgspec
import pytest

from projections.publish.publisher import Committed, Publisher
from runtime.scheduler.types import Claimed, Released
from sandbox.simulation import run_seeds
from sandbox.simulation.memory.rows import Row
from sandbox.simulation.memory.tables import Tables
from sandbox.simulation.run import simulate
from schemas.log import gate
from schemas.log.gate import ItemGate, Verdict
from schemas.log.records import Cause, Head
from streams import fetch_deltas
from streams.sync import changeset_writer, pages, sync_run
from streams.sync.changeset import Draft

SEEDS_MAX = 150
"""Seeds within which each defect must show."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    import structlog

    before = structlog.get_config()
    run_seeds.quiet()
    yield
    structlog.configure(**before)


def gate_accepts_what_is_not_the_heads_child(patch: pytest.MonkeyPatch) -> None:
    real = gate.decide

    def decide(head: Head, item: ItemGate, *, erased: bool, known: bool) -> Verdict:
        verdict = real(head, item, erased=erased, known=known)
        return Verdict.ACCEPTED if verdict is Verdict.NOT_HEAD else verdict

    patch.setattr(gate, "decide", decide)


def release_forgets_the_offset_to_wait_for(patch: pytest.MonkeyPatch) -> None:
    real = Tables._release

    def release(self: Tables, row: Row, claimed: Claimed, result: Released, now: datetime) -> None:
        real(self, row, claimed, msgspec.structs.replace(result, wait_offset=None), now)

    patch.setattr(Tables, "_release", release)


def mark_does_not_raise_the_generation(patch: pytest.MonkeyPatch) -> None:
    real = Tables._mark

    def mark(self: Tables, row: Row, lane: int, cause: Cause) -> None:
        real(self, row, lane, cause)
        row.generation -= 1

    patch.setattr(Tables, "_mark", mark)


def publisher_raises_its_checkpoint_before_it_sends(patch: pytest.MonkeyPatch) -> None:
    async def publish(self: Publisher, committed: Committed) -> None:
        for partition, (_, end) in committed.spans.items():
            self._published[partition] = end
        await self._send(committed.changesets)

    patch.setattr(Publisher, "_publish", publish)


def removals_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    real = pages.merge_pages

    def folded(found: Any, *, fresh: bool) -> Any:
        return real([page._replace(removed=[]) for page in found], fresh=fresh)

    patch.setattr(sync_run, "merge_pages", folded)


def cursor_is_kept_although_the_append_is_not(patch: pytest.MonkeyPatch) -> None:
    """The tables know the new cursor before the log has the record."""
    real = changeset_writer.ChangesetWriter.append

    async def append(self: Any, draft: Draft) -> None:
        store = self._context.store
        known = store._tables.heads.get(self._claimed.item_id)
        if known is not None and draft.cursor is not None:
            head = msgspec.structs.replace(known.head, cursor=draft.cursor)
            store._tables.heads[self._claimed.item_id] = known._replace(head=head)
        await real(self, draft)

    patch.setattr(changeset_writer.ChangesetWriter, "append", append)


def lease_is_believed_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fetch_deltas.Lease, "is_live", lambda self: True)


DEFECTS = (
    gate_accepts_what_is_not_the_heads_child,
    release_forgets_the_offset_to_wait_for,
    mark_does_not_raise_the_generation,
    publisher_raises_its_checkpoint_before_it_sends,
    removals_are_forgotten,
    cursor_is_kept_although_the_append_is_not,
    lease_is_believed_for_ever,
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found(defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)

    found = next((seed for seed in range(1, SEEDS_MAX + 1) if simulate(seed).problems), None)

    assert found is not None, f"{defect.__name__} passed {SEEDS_MAX} seeds"
