"""Commands: edits, decisions, real-time balances and redrives, appended to `changesets` as free records.

A command is sealed and read through the gate like any other record. Its id comes from the user and the idempotency
key, so an append without an answer is simply repeated.
"""

import hmac
import os
import secrets
import time
from collections import Counter
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
"""Length of the key of a command that has no idempotency key: two are never the same."""


class CommandTarget(NamedTuple):
    """The Item of a command, with its user and the partition of both."""

    item_id: str
    user: int
    partition: int


class Command(NamedTuple):
    """A command before it is sealed: its type, and its events as (type, schema, Avro bytes)."""

    type: str
    events: list[tuple[str, int, bytes]]


class PreparedCommand(NamedTuple):
    """The id of a command, the fingerprint that detects another body under this id, and the keys that seal it."""

    id: ChangesetId
    fingerprint: bytes | None
    keys: UserKeys


class CommandWriter:
    """Appends commands. It keeps no user key: an erasure must find no copy in a process that is not informed of it."""

    def __init__(self, settings: Settings, appender: Appender, vault: Vault) -> None:
        self._topic = topics.full_name(CHANGESETS, settings.topic_prefix)
        self._appender = appender
        self._vault = vault

    async def prepare(
        self,
        connection: asyncpg.Connection,
        target: CommandTarget,
        *,
        key: str | None = None,
        body: bytes | None = None,
    ) -> PreparedCommand:
        """Compute the id and fingerprint of a command before it is appended.

        `key` is the client's idempotency key and determines the id; without one each command has an id of its own.
        `body` is any bytes that contain the whole request.
        Raises: Quarantine, where the user has no key or was erased.
        """
        keys = (await Keyring(self._vault).of(connection, [target.user])).get(target.user)
        if keys is None:
            raise Quarantine(f"the user of item {target.item_id} has no key: restore user_keys from a backup first")
        if isinstance(keys, Destroyed):
            raise Quarantine(f"the user of item {target.item_id} was erased: nothing of them can be brought back")
        command_id = free_id(target.user, key or secrets.token_hex(RANDOM_KEY_BYTES))
        # Keyed, so that it shows to nobody else that two bodies are equal.
        fingerprint = None if body is None else hmac.digest(keys.fingerprints, b"body\0" + body, "sha256")
        return PreparedCommand(command_id, fingerprint, keys)

    async def append(
        self, target: CommandTarget, command: Command, prepared: PreparedCommand, cause: Cause
    ) -> Appended:
        """Append a command.

        Idempotence: readers take an id once, so the same prepared command again changes nothing.
        Raises: InDoubt, where no answer came; Retry.
        """
        head = Head(
            id=prepared.id,
            kind=gate.FREE,
            type=command.type,
            parent=None,
            item_id=target.item_id,
            user=target.user,
            at=time.time_ns() // 1000,
            cause=cause,
            key_generation=prepared.keys.generation,
            counts=dict(Counter(kind for kind, _, _ in command.events)),
            body_fingerprint=prepared.fingerprint,
        )
        body = codec.encode_events(command.events)
        value = changesets.seal(head, body, prepared.keys, nonce=os.urandom(NONCE_BYTES))
        record = Outgoing(user_key(target.user), value)
        return await self._appender.append(self._topic, record, partition=target.partition)
