"""What operators have to know of a batch, told in its own transaction: dead letters, incidents, the rate that stops.

The ordinary batch parks nothing and withholds nothing, and costs no statement here.
"""

import asyncpg

from projections.gate.check import Admission
from projections.gate.quarantine import Parking
from projections.model.unit_of_work import WorkingSet
from projections.store.loader import PARKED_BY
from runtime import logs
from runtime.incidents import dead_letters, incidents
from runtime.incidents.dead_letters import Letter
from runtime.scheduler import enqueue
from schemas.errors import Halt
from schemas.topics import CHANGESETS

_log = logs.logger(__name__)


class TooManyParked(Halt):
    """More Items were parked within the window than a sound deploy parks."""


async def tell(
    connection: asyncpg.Connection, working: WorkingSet, admission: Admission, *, parkings_max: int, window_s: float
) -> None:
    """Write what a batch leaves to operators, behind its own rows.

    Raises: TooManyParked, where the batch must not be committed.
    """
    if admission.parkings:
        await _check_rate(connection, admission, parkings_max, window_s)
        await dead_letters.put(connection, [_letter(parking) for parking in admission.parkings])
        for parking in admission.parkings:
            if parking.redrive is None:
                await incidents.seen(connection, incidents.ITEM_PARKED, parking.item_id, parking.reason)
    redriven = _redriven(admission)
    if redriven:
        await dead_letters.redriven(connection, PARKED_BY, redriven)
        # follow_heads may have made the Item due before its parking ended here, and a claim found it parked still.
        await enqueue.mark_again(connection, [], redriven=list(redriven))
        for item_id in redriven:
            await incidents.over(connection, incidents.ITEM_PARKED, item_id)
    for item_id, detail in working.withheld_removals.items():
        if detail is None:
            await incidents.over(connection, incidents.REMOVALS_WITHHELD, item_id)
        else:
            await incidents.seen(connection, incidents.REMOVALS_WITHHELD, item_id, detail)


async def _check_rate(connection: asyncpg.Connection, admission: Admission, parkings_max: int, window_s: float) -> None:
    """Stop where this batch sets too many Items aside.

    Redrives that failed again are none of it: an operator who redrives all that is parked, in vain, must not stop
    what goes well.
    """
    redrives = {(one.item_id, one.redrive) for one in admission.ended}
    redrives |= {(one.item_id, one.redrive) for one in admission.parkings if one.redrive is not None}
    fresh = [one for one in admission.parkings if (one.item_id, one.first_offset) not in redrives]
    if not fresh:
        return
    parked = await dead_letters.rate(connection, PARKED_BY, window_s)
    if parked > parkings_max:
        raise TooManyParked(
            f"{parked} Items parked within {window_s:g} s, at most {parkings_max}: nothing of this batch is"
            f" committed; the last reason: {fresh[-1].reason}"
        )


async def stopped(connection: asyncpg.Connection, error: TooManyParked) -> None:
    """Open the incident of a stop, in a transaction of its own: that of the batch is rolled back.

    The stop itself must not fail because Postgres is away too.
    """
    try:
        await incidents.seen(connection, incidents.DEAD_LETTERS, PARKED_BY, str(error))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as away:
        _log.warning("incident is not written", reason=type(away).__name__)


def _letter(parking: Parking) -> Letter:
    original = parking.original
    return Letter(
        PARKED_BY,
        CHANGESETS.name,
        original.partition,
        original.offset,
        parking.item_id,
        parking.reason,
        original.key,
        original.value,
    )


def _redriven(admission: Admission) -> dict[str, int]:
    """Items that a redrive freed and nothing parked again behind it, each with the redrive's offset."""
    ended = {one.item_id: one.redrive for one in admission.ended}
    ended.update({one.item_id: one.redrive for one in admission.parkings if one.redrive is not None})
    for one in admission.parkings:
        if one.redrive is None:
            ended.pop(one.item_id, None)
    return ended
