"""Write dead letters and incidents in the batch's transaction, before COMMIT, and limit the rate of quarantines.

An ordinary batch quarantines nothing and withholds nothing, and runs no statement here.
"""

import asyncpg

from projections.gate.check import GateResult
from projections.model.unit_of_work import UnitOfWork
from projections.store.gate_state import QUARANTINED_BY
from runtime import logs
from runtime.incidents import dead_letters, incidents
from runtime.incidents.dead_letters import NewDeadLetter
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.scheduler import enqueue
from schemas.errors import Halt
from schemas.topics import CHANGESETS

_log = logs.logger(__name__)


class TooManyQuarantined(Halt):
    """Too many Items were quarantined within the window; stop before a bad release drains the topic."""


async def write_notices(
    connection: asyncpg.Connection, working: UnitOfWork, result: GateResult, *, quarantines_max: int, window_s: float
) -> None:
    """Write what a batch reports to operators, after its own rows.

    Raises: TooManyQuarantined, where the batch must not be committed.
    """
    if result.quarantines:
        await _check_rate(connection, result, quarantines_max, window_s)
        letters = [
            NewDeadLetter(
                QUARANTINED_BY,
                CHANGESETS.name,
                quarantine.original.partition,
                quarantine.original.offset,
                quarantine.item_id,
                quarantine.reason,
                quarantine.original.key,
                quarantine.original.value,
            )
            for quarantine in result.quarantines
        ]
        await dead_letters.write(connection, letters)
        for quarantine in result.quarantines:
            if quarantine.redrive is None:
                await incidents.report(connection, incidents.ITEM_QUARANTINED, quarantine.item_id, quarantine.reason)
    if redriven := _redriven(result):
        await dead_letters.mark_redriven(connection, QUARANTINED_BY, redriven)
        # follow_heads may have marked the Item due before its quarantine ended here, and a claim then refused it.
        await enqueue.mark_again(connection, [], redriven=list(redriven))
        for item_id in redriven:
            await incidents.close(connection, incidents.ITEM_QUARANTINED, item_id)
    for item_id, detail in working.withheld_removals.items():
        if detail is None:
            await incidents.close(connection, incidents.REMOVALS_WITHHELD, item_id)
        else:
            await incidents.report(connection, incidents.REMOVALS_WITHHELD, item_id, detail)


async def open_stop_incident(connection: asyncpg.Connection, error: TooManyQuarantined) -> None:
    """Open the incident of a stop, in a transaction of its own: that of the batch is rolled back.

    It does not raise while Postgres is away: the stop itself goes on.
    """
    try:
        await incidents.report(connection, incidents.DEAD_LETTERS, QUARANTINED_BY, str(error))
    except POSTGRES_ERRORS as away:
        _log.warning("incident is not written", reason=type(away).__name__)


async def _check_rate(
    connection: asyncpg.Connection, result: GateResult, quarantines_max: int, window_s: float
) -> None:
    """Raise TooManyQuarantined where this batch quarantines too many Items.

    Failed redrives do not count: an operator who redrives all quarantined Items in vain must not stop the others.
    """
    redrives = {(ended.item_id, ended.redrive) for ended in result.ended}
    redrives |= {(new.item_id, new.redrive) for new in result.quarantines if new.redrive is not None}
    fresh = [new for new in result.quarantines if (new.item_id, new.first_offset) not in redrives]
    if not fresh:
        return
    quarantined = await dead_letters.count_quarantined(connection, QUARANTINED_BY, window_s)
    if quarantined > quarantines_max:
        raise TooManyQuarantined(
            f"{quarantined} Items quarantined within {window_s:g} s, at most {quarantines_max}: nothing of this batch"
            f" is committed; the last reason: {fresh[-1].reason}"
        )


def _redriven(result: GateResult) -> dict[str, int]:
    """Return the Items that a redrive freed and no later record quarantined, each with the redrive's offset."""
    redriven = {ended.item_id: ended.redrive for ended in result.ended}
    redriven.update({new.item_id: new.redrive for new in result.quarantines if new.redrive is not None})
    quarantined = {new.item_id for new in result.quarantines if new.redrive is None}
    return {item_id: redrive for item_id, redrive in redriven.items() if item_id not in quarantined}
