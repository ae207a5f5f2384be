"""What an operator has done: free records appended to `changesets`, and the wait until their readers acted on them.

A redrive and a decision are facts like any other: in the log, sealed, read by the gate. Sent again they change
nothing, so an append without an answer may simply be asked for again. Shell.
"""

import asyncio
import os
import secrets
import time
from enum import StrEnum
from typing import NamedTuple

import asyncpg

from runtime.kafka import Appended, Appender, Outgoing
from runtime.leases import FOLLOWER, PARKING
from runtime.settings import Settings
from runtime.standing import Standing
from runtime.users import Destroyed, Keyring
from schemas import catalogue, changesets, codec, gate, topics
from schemas.changesets import NONCE_BYTES, UserKeys
from schemas.errors import Quarantine
from schemas.events import APPROVE_REMOVALS, DECISION_MADE, REJECT_REMOVALS
from schemas.ids import free_id
from schemas.records import Cause, Decision, Head
from schemas.topics import CHANGESETS, user_key

CAUSE = "operator"
READ_S_MAX = 30.0
"""How long to wait for the readers of an operator's record: a batch takes seconds, a stage that is down for ever."""
POLL_S = 0.2
REASON_CHARACTERS_MAX = 300


class Outcome(StrEnum):
    """What came of an operator's record. `appended`: it is in the log, and nobody has read it yet."""

    DONE = "done"
    FAILED_AGAIN = "parked_again"
    APPENDED = "appended"


class Said(NamedTuple):
    """A free record before it is sealed: its type, and the events that it holds."""

    type: str
    events: list[tuple[str, int, bytes]]


def redrive() -> Said:
    """That what is withheld of an Item is to be tried again."""
    return Said(gate.REDRIVE, [])


def decision(item: Standing, *, approve: bool, by: str) -> Said:
    """That removals which a restated history implies are right, or wrong.

    Raises: Quarantine, where none wait.
    """
    if not item.missing_rows or item.missing_since is None:
        raise Quarantine(f"item {item.item_id} has no removals that wait for a decision")
    made = Decision(item.missing_since, APPROVE_REMOVALS if approve else REJECT_REMOVALS, by)
    return Said(gate.DECISION, [(DECISION_MADE, catalogue.DECISION, codec.encode(made))])


class Operator:
    """Appends in an operator's name. Readers answer for what came of it."""

    def __init__(self, settings: Settings, appender: Appender, keyring: Keyring, *, by: str) -> None:
        self._settings = settings
        self._appender = appender
        self._keyring = keyring
        self._by = by

    async def append(self, connection: asyncpg.Connection, item: Standing, said: Said) -> Appended:
        """Append a free record about an Item.

        Idempotence: each call makes a new record, which changes nothing that an earlier one has changed.
        Raises: Quarantine, where the user was erased; InDoubt, where no answer came; Retry.
        """
        value = sealed(item, said, await self._keys(connection, item), by=self._by, at=time.time_ns() // 1000)
        topic = topics.full_name(CHANGESETS, self._settings.topic_prefix)
        return await self._appender.append(topic, Outgoing(user_key(item.user), value), partition=item.partition)

    async def _keys(self, connection: asyncpg.Connection, item: Standing) -> UserKeys:
        keys = (await self._keyring.of(connection, [item.user])).get(item.user)
        if keys is None:
            raise Quarantine(f"the user of item {item.item_id} has no key: restore user_keys from a backup first")
        if isinstance(keys, Destroyed):
            raise Quarantine(f"the user of item {item.item_id} was erased: nothing of them can be brought back")
        return keys


def sealed(item: Standing, said: Said, keys: UserKeys, *, by: str, at: int) -> bytes:
    """Write a free record about an Item, under a random id. Units: `at` in microseconds since 1970, UTC."""
    counts: dict[str, int] = {}
    for kind, _, _ in said.events:
        counts[kind] = counts.get(kind, 0) + 1
    head = Head(
        id=free_id(item.user, secrets.token_hex(16)), kind=gate.FREE, type=said.type, parent=None,
        item_id=item.item_id, user=item.user, at=at, cause=Cause(CAUSE, by=by), key_generation=keys.generation,
        counts=counts,
    )  # fmt: skip
    return changesets.seal(head, codec.encode_events(said.events), keys, nonce=os.urandom(NONCE_BYTES))


async def is_read(connection: asyncpg.Connection, at: Appended, *, within_s: float = READ_S_MAX) -> bool:
    """Wait until projections and follow_heads have dealt with a record; False where they have not in time."""
    ends = time.monotonic() + within_s
    while not await connection.fetchval(_IS_READ, at.partition, at.offset):
        if time.monotonic() >= ends:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def park(connection: asyncpg.Connection, item: Standing, *, reason: str) -> bool:
    """Set an Item aside until it is redriven; False where it is parked already.

    A pass that is under way ends as it would have; nothing is claimed afterwards, but an unlink.
    """
    async with connection.transaction():
        done = await connection.fetchval(_PARK, item.item_id, f"operator: {reason}"[:REASON_CHARACTERS_MAX])
        if done:
            await connection.execute(_STOP, item.item_id)
    return bool(done)


# The log's two readers: what they show, and what may be claimed.
_IS_READ = f"""
    SELECT coalesce((SELECT position FROM reads.positions WHERE partition = $1), 0) > $2
       AND coalesce((SELECT position FROM tartan.positions WHERE reader = '{FOLLOWER}' AND partition = $1), 0) > $2"""

# One that is open stays as it is, with its reason.
_PARK = f"""
    WITH held AS (
        SELECT item_id, partition FROM tartan.sync_state
        WHERE item_id = $1
          AND NOT EXISTS (SELECT FROM tartan.parkings WHERE item_id = $1 AND redrive_offset IS NULL)
    )
    {PARKING} WHERE k.redrive_offset IS NOT NULL RETURNING true"""

_STOP = "UPDATE tartan.sync_state SET stopped = 'parked' WHERE item_id = $1 AND stopped IS DISTINCT FROM 'unlinked'"
