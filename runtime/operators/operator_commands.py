"""What an operator has done: free records appended to `changesets`, and the wait until their readers acted on them.

A redrive and a decision are facts like any other: in the log, sealed, read by the gate. Sent again they change
nothing, so an append without an answer may simply be asked for again. Shell.
"""

import asyncio
import time
from enum import StrEnum

import asyncpg

from runtime.kafka.clients import Appended
from runtime.scheduler.item_status import ItemStatus
from runtime.scheduler.leases import FOLLOWER, QUARANTINE
from runtime.users.commands import Command, CommandTarget, CommandWriter
from schemas.encoding import catalogue, codec
from schemas.errors import Quarantine
from schemas.events import APPROVE_REMOVALS, DECISION_MADE, REJECT_REMOVALS
from schemas.log import gate
from schemas.log.records import Cause, Decision

CAUSE = "operator"
READ_S_MAX = 30.0
"""How long to wait for the readers of an operator's record: a batch takes seconds, a stage that is down for ever."""
POLL_S = 0.2
REASON_CHARACTERS_MAX = 300


class Outcome(StrEnum):
    """What came of an operator's record. `appended`: it is in the log, and nobody has read it yet."""

    DONE = "done"
    FAILED_AGAIN = "quarantined_again"
    APPENDED = "appended"


def redrive() -> Command:
    """That what is withheld of an Item is to be tried again."""
    return Command(gate.REDRIVE, [])


def decision(item: ItemStatus, *, approve: bool, by: str) -> Command:
    """That removals which a restated history implies are right, or wrong.

    Raises: Quarantine, where none wait.
    """
    if not item.missing_rows or item.missing_changeset_id is None:
        raise Quarantine(f"item {item.item_id} has no removals that wait for a decision")
    made = Decision(item.missing_changeset_id, APPROVE_REMOVALS if approve else REJECT_REMOVALS, by)
    return Command(gate.DECISION, [(DECISION_MADE, catalogue.DECISION, codec.encode(made))])


class Operator:
    """Appends in an operator's name. Readers answer for what came of it."""

    def __init__(self, records: CommandWriter, *, by: str) -> None:
        self._records = records
        self._cause = Cause(CAUSE, by=by)

    async def append(self, connection: asyncpg.Connection, item: ItemStatus, said: Command) -> Appended:
        """Append a free record about an Item.

        Idempotence: each call makes a new record, which changes nothing that an earlier one has changed.
        Raises: Quarantine, where the user was erased; InDoubt, where no answer came; Retry.
        """
        about = CommandTarget(item.item_id, item.user, item.partition)
        ticket = await self._records.prepare(connection, about)
        return await self._records.append(about, said, ticket, self._cause)


async def is_read(connection: asyncpg.Connection, at: Appended, *, within_s: float = READ_S_MAX) -> bool:
    """Wait until projections and follow_heads have dealt with a record; False where they have not in time."""
    ends = time.monotonic() + within_s
    while not await connection.fetchval(_IS_READ, at.partition, at.offset):
        if time.monotonic() >= ends:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def quarantine(connection: asyncpg.Connection, item: ItemStatus, *, reason: str) -> bool:
    """Set an Item aside until it is redriven; False where it is quarantined already.

    A pass that is under way ends as it would have; nothing is claimed afterwards, but an unlink.
    """
    async with connection.transaction():
        done = await connection.fetchval(_QUARANTINE, item.item_id, f"operator: {reason}"[:REASON_CHARACTERS_MAX])
        if done:
            await connection.execute(_STOP, item.item_id)
    return bool(done)


# The log's two readers: what they show, and what may be claimed.
_IS_READ = f"""
    SELECT coalesce((SELECT position FROM reads.positions WHERE partition = $1), 0) > $2
       AND coalesce((SELECT position FROM tartan.positions WHERE reader = '{FOLLOWER}' AND partition = $1), 0) > $2"""

# One that is open stays as it is, with its reason.
_QUARANTINE = f"""
    WITH held AS (
        SELECT item_id, partition FROM tartan.sync_state
        WHERE item_id = $1
          AND NOT EXISTS (SELECT FROM tartan.quarantines WHERE item_id = $1 AND redrive_offset IS NULL)
    )
    {QUARANTINE} WHERE k.redrive_offset IS NOT NULL RETURNING true"""

_STOP = (
    "UPDATE tartan.sync_state SET stopped = 'quarantined' WHERE item_id = $1 AND stopped IS DISTINCT FROM 'unlinked'"
)
