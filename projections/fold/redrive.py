"""Redrive, the exception of the fold: a record folds all withheld records of its Item, and publishes their events."""

from msgspec.structs import replace

from projections.events import public_events
from projections.fold.fold import fold
from projections.gate.check import AcceptedRecord
from projections.model.unit_of_work import FoldedRecord, UnitOfWork
from runtime.postgres.errors import reason
from schemas.errors import Halt, Quarantine


def fold_redrive(work: UnitOfWork, record: AcceptedRecord) -> None:
    """Fold the records that a redrive releases, then the redrive itself, which has all their net events.

    Raises: Quarantine, which names the record that fails; the unit of work is of no use then.
    """
    released = [_fold_released(work, accepted) for accepted in record.redriven]
    redrive = fold(work, record)
    net = [event for folded in released for event in folded.net_events]
    work.folded[-1] = redrive._replace(net_events=net, block=public_events.encode_block(net))
    work.folded += [
        folded._replace(
            context=replace(folded.context, offset=accepted.log_record.received.offset),
            net_events=[],
            block=public_events.encode_block([]),
            redriven_by=record.context.offset,
        )
        for accepted, folded in zip(record.redriven, released, strict=True)
    ]


def _fold_released(work: UnitOfWork, record: AcceptedRecord) -> FoldedRecord:
    try:
        fold(work, record)
    except Halt:
        raise
    except Exception as error:
        raise Quarantine(f"record {record.log_record.received.offset}: {reason(error)}") from error
    return work.folded.pop()
