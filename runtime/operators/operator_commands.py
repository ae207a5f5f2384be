"""Operators' commands: redrives, decisions about removals, quarantines, and the wait until their readers acted on them.

A command that is sent again changes nothing, so an append without an answer is simply repeated.
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
"""Longest wait for the readers of a command: a batch takes seconds, a stage that is down never reads it."""
POLL_S = 0.2
REASON_CHARACTERS_MAX = 300


class Outcome(StrEnum):
    """The outcome of an operator's command. `appended`: it is in the log, and no reader has come to it yet."""

    DONE = "done"
    FAILED_AGAIN = "quarantined_again"
    APPENDED = "appended"


def redrive() -> Command:
    """Build the command that processes an Item's withheld records again."""
    return Command(gate.REDRIVE, [])


def decision(item: ItemStatus, *, approve: bool, by: str) -> Command:
    """Build the command that approves or rejects the removals of a full resync.

    Raises: Quarantine, where no removals wait.
    """
    if not item.missing_rows or item.missing_changeset_id is None:
        raise Quarantine(f"item {item.item_id} has no removals that wait for a decision")
    event = Decision(item.missing_changeset_id, APPROVE_REMOVALS if approve else REJECT_REMOVALS, by)
    return Command(gate.DECISION, [(DECISION_MADE, catalogue.DECISION, codec.encode(event))])


class Operator:
    """Appends commands in an operator's name."""

    def __init__(self, writer: CommandWriter, *, by: str) -> None:
        self._writer = writer
        self._cause = Cause(CAUSE, by=by)

    async def append(self, connection: asyncpg.Connection, item: ItemStatus, command: Command) -> Appended:
        """Append a command about an Item.

        Idempotence: each call appends a new record, which changes nothing that an earlier one has changed.
        Raises: Quarantine, where the user was erased; InDoubt, where no answer came; Retry.
        """
        target = CommandTarget(item.item_id, item.user, item.partition)
        prepared = await self._writer.prepare(connection, target)
        return await self._writer.append(target, command, prepared, self._cause)


async def is_read(connection: asyncpg.Connection, appended: Appended, *, within_s: float = READ_S_MAX) -> bool:
    """Wait until projections and follow_heads have read a record; False where they have not within `within_s`."""
    deadline = time.monotonic() + within_s
    while not await connection.fetchval(_IS_READ, appended.partition, appended.offset):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def quarantine(connection: asyncpg.Connection, item: ItemStatus, *, reason: str) -> bool:
    """Quarantine an Item until it is redriven; False where it is quarantined already.

    A sync run under way ends as usual; afterwards the Item is claimed for an unlink only.
    """
    async with connection.transaction():
        is_new = await connection.fetchval(_QUARANTINE, item.item_id, f"operator: {reason}"[:REASON_CHARACTERS_MAX])
        if is_new:
            await connection.execute(_STOP, item.item_id)
    return bool(is_new)


# Both readers of the log: one decides what users see, the other what may be claimed.
_IS_READ = f"""
    SELECT coalesce((SELECT position FROM reads.positions WHERE partition = $1), 0) > $2
       AND coalesce((SELECT position FROM tartan.positions WHERE reader = '{FOLLOWER}' AND partition = $1), 0) > $2"""

# A quarantine that is open keeps its reason.
_QUARANTINE = f"""
    WITH held AS (
        SELECT item_id, partition FROM tartan.sync_state
        WHERE item_id = $1
          AND NOT EXISTS (SELECT FROM tartan.quarantines WHERE item_id = $1 AND redrive_offset IS NULL)
    )
    {QUARANTINE} WHERE k.redrive_offset IS NOT NULL RETURNING true"""

_STOP = """
    UPDATE tartan.sync_state SET stopped = 'quarantined'
    WHERE item_id = $1 AND stopped IS DISTINCT FROM 'unlinked'"""
