"""Folds a record that counts, and with a redrive all that it frees: one step, its events at the redrive. Pure."""

import msgspec

from projections.events import public_events
from projections.fold.fold import fold
from projections.gate.check import Admitted
from projections.model.unit_of_work import Folded, UnitOfWork
from runtime.postgres.errors import reason
from schemas.errors import Halt, Quarantine


def apply(working: UnitOfWork, record: Admitted) -> None:
    """Apply an admitted record to the working set.

    Raises: whatever the fold raises; for a record that is redriven Quarantine, which names it. The working set is of
    no use then.
    """
    if not record.redriven:
        fold(working, record.item, record.opened.head, record.place, record.said)
        return
    freed = [_freed(working, one) for one in record.redriven]
    redrive = fold(working, record.item, record.opened.head, record.place, record.said)
    net = [event for folded in freed for event in folded.net_events]
    working.folded[-1] = redrive._replace(net_events=net, block=public_events.encoded(net))
    working.folded += [
        folded._replace(
            place=msgspec.structs.replace(folded.place, offset=one.opened.received.offset),
            net_events=[],
            block=public_events.encoded([]),
            redriven_by=record.place.offset,
        )
        for one, folded in zip(record.redriven, freed, strict=True)
    ]


def _freed(working: UnitOfWork, record: Admitted) -> Folded:
    try:
        folded = fold(working, record.item, record.opened.head, record.place, record.said)
    except Halt:
        raise
    except Exception as error:
        raise Quarantine(f"record {record.opened.received.offset}: {reason(error)}") from error
    working.folded.pop()
    return folded
