"""Free records: what people and their applications say about an Item, appended to `changesets`, once by its id.

An edit, a decision, a real-time balance, a redrive: facts like any other, in the log, sealed, read by the gate. The id
comes from the user and the idempotency key, so an append without an answer may simply be made again. Shell.
"""

import hmac
import os
import secrets
import time
from typing import NamedTuple

import asyncpg

from runtime.kafka.clients import Appended, Appender, Outgoing
from runtime.settings import Settings
from runtime.users.keys import Destroyed, Keyring
from runtime.users.vault import Vault
from schemas import topics
from schemas.encoding import codec
from schemas.errors import Quarantine
from schemas.ids import ChangesetId, free_id
from schemas.log import changesets, gate
from schemas.log.changesets import NONCE_BYTES, UserKeys
from schemas.log.records import Cause, Head
from schemas.topics import CHANGESETS, user_key

RANDOM_KEY_BYTES = 16
"""Of a key that nobody sent: enough that no two are ever the same."""


class CommandTarget(NamedTuple):
    """The Item that a record is about, its user and the partition of both."""

    item_id: str
    user: int
    partition: int


class Command(NamedTuple):
    """A free record before it is sealed: its type, and the events that it holds."""

    type: str
    events: list[tuple[str, int, bytes]]


class PreparedCommand(NamedTuple):
    """A record to be: its id, the fingerprint that finds out another body under this id, the keys that seal it."""

    id: ChangesetId
    fingerprint: bytes | None
    keys: UserKeys


class CommandWriter:
    """Appends free records. No key is kept: an erasure must find no copy in a process that hears nothing of it."""

    def __init__(self, settings: Settings, appender: Appender, vault: Vault) -> None:
        self._topic = topics.full_name(CHANGESETS, settings.topic_prefix)
        self._appender = appender
        self._vault = vault

    async def prepare(
        self, connection: asyncpg.Connection, about: CommandTarget, *, key: str | None = None, body: bytes | None = None
    ) -> PreparedCommand:
        """The id and fingerprint of a record, before anything is appended.

        `key` is the client's, and makes the id; without one each record has an id of its own. `body` are any bytes
        that say all that was asked.
        Raises: Quarantine, where the user has no key or was erased.
        """
        keys = (await Keyring(self._vault).of(connection, [about.user])).get(about.user)
        if keys is None:
            raise Quarantine(f"the user of item {about.item_id} has no key: restore user_keys from a backup first")
        if isinstance(keys, Destroyed):
            raise Quarantine(f"the user of item {about.item_id} was erased: nothing of them can be brought back")
        number = free_id(about.user, key or secrets.token_hex(RANDOM_KEY_BYTES))
        return PreparedCommand(number, None if body is None else fingerprint(keys, body), keys)

    async def append(self, about: CommandTarget, said: Command, ticket: PreparedCommand, cause: Cause) -> Appended:
        """Append a free record about an Item.

        Idempotence: readers take an id once, so the same ticket again changes nothing.
        Raises: InDoubt, where no answer came; Retry.
        """
        value = seal_command(about, said, ticket, cause=cause, at=time.time_ns() // 1000)
        return await self._appender.append(
            self._topic, Outgoing(user_key(about.user), value), partition=about.partition
        )


def seal_command(about: CommandTarget, said: Command, ticket: PreparedCommand, *, cause: Cause, at: int) -> bytes:
    """Write a free record. Units: `at` in microseconds since 1970, UTC."""
    counts: dict[str, int] = {}
    for kind, _, _ in said.events:
        counts[kind] = counts.get(kind, 0) + 1
    head = Head(
        id=ticket.id,
        kind=gate.FREE,
        type=said.type,
        parent=None,
        item_id=about.item_id,
        user=about.user,
        at=at,
        cause=cause,
        key_generation=ticket.keys.generation,
        counts=counts,
        body_fingerprint=ticket.fingerprint,
    )
    return changesets.seal(head, codec.encode_events(said.events), ticket.keys, nonce=os.urandom(NONCE_BYTES))


def fingerprint(keys: UserKeys, body: bytes) -> bytes:
    """The keyed fingerprint of a request's body, 32 bytes: it says that two are equal, and nothing to others."""
    return hmac.digest(keys.fingerprints, b"body\0" + body, "sha256")
