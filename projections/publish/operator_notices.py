"""What operators have to know of a batch, told in its own transaction: dead letters, incidents, the rate that stops.

The ordinary batch quarantines nothing and withholds nothing, and costs no statement here.
"""

import asyncpg

from projections.gate.check import GateResult
from projections.gate.quarantine import ItemQuarantine
from projections.model.unit_of_work import UnitOfWork
from projections.store.loader import QUARANTINED_BY
from runtime import logs
from runtime.incidents import dead_letters, incidents
from runtime.incidents.dead_letters import NewDeadLetter
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.scheduler import enqueue
from schemas.errors import Halt
from schemas.topics import CHANGESETS

_log = logs.logger(__name__)


class TooManyQuarantined(Halt):
    """More Items were quarantined within the window than a sound deploy quarantines."""


async def write_notices(
    connection: asyncpg.Connection, working: UnitOfWork, admission: GateResult, *, quarantines_max: int, window_s: float
) -> None:
    """Write what a batch leaves to operators, behind its own rows.

    Raises: TooManyQuarantined, where the batch must not be committed.
    """
    if admission.quarantines:
        await _check_rate(connection, admission, quarantines_max, window_s)
        await dead_letters.write(connection, [_letter(item_quarantine) for item_quarantine in admission.quarantines])
        for item_quarantine in admission.quarantines:
            if item_quarantine.redrive is None:
                await incidents.report(
                    connection, incidents.ITEM_QUARANTINED, item_quarantine.item_id, item_quarantine.reason
                )
    redriven = _redriven(admission)
    if redriven:
        await dead_letters.mark_redriven(connection, QUARANTINED_BY, redriven)
        # follow_heads may have made the Item due before its item_quarantine ended here, and a claim found it quarantined still.
        await enqueue.mark_again(connection, [], redriven=list(redriven))
        for item_id in redriven:
            await incidents.close(connection, incidents.ITEM_QUARANTINED, item_id)
    for item_id, detail in working.withheld_removals.items():
        if detail is None:
            await incidents.close(connection, incidents.REMOVALS_WITHHELD, item_id)
        else:
            await incidents.report(connection, incidents.REMOVALS_WITHHELD, item_id, detail)


async def _check_rate(
    connection: asyncpg.Connection, admission: GateResult, quarantines_max: int, window_s: float
) -> None:
    """Stop where this batch sets too many Items aside.

    Redrives that failed again are none of it: an operator who redrives all that is quarantined, in vain, must not stop
    what goes well.
    """
    redrives = {(one.item_id, one.redrive) for one in admission.ended}
    redrives |= {(one.item_id, one.redrive) for one in admission.quarantines if one.redrive is not None}
    fresh = [one for one in admission.quarantines if (one.item_id, one.first_offset) not in redrives]
    if not fresh:
        return
    quarantined = await dead_letters.count_quarantined(connection, QUARANTINED_BY, window_s)
    if quarantined > quarantines_max:
        raise TooManyQuarantined(
            f"{quarantined} Items quarantined within {window_s:g} s, at most {quarantines_max}: nothing of this batch is"
            f" committed; the last reason: {fresh[-1].reason}"
        )


async def open_stop_incident(connection: asyncpg.Connection, error: TooManyQuarantined) -> None:
    """Open the incident of a stop, in a transaction of its own: that of the batch is rolled back.

    The stop itself must not fail because Postgres is away too.
    """
    try:
        await incidents.report(connection, incidents.DEAD_LETTERS, QUARANTINED_BY, str(error))
    except POSTGRES_ERRORS as away:
        _log.warning("incident is not written", reason=type(away).__name__)


def _letter(item_quarantine: ItemQuarantine) -> NewDeadLetter:
    original = item_quarantine.original
    return NewDeadLetter(
        QUARANTINED_BY,
        CHANGESETS.name,
        original.partition,
        original.offset,
        item_quarantine.item_id,
        item_quarantine.reason,
        original.key,
        original.value,
    )


def _redriven(admission: GateResult) -> dict[str, int]:
    """Items that a redrive freed and nothing quarantined again behind it, each with the redrive's offset."""
    ended = {one.item_id: one.redrive for one in admission.ended}
    ended.update({one.item_id: one.redrive for one in admission.quarantines if one.redrive is not None})
    for one in admission.quarantines:
        if one.redrive is None:
            ended.pop(one.item_id, None)
    return ended
