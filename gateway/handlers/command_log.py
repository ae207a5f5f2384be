"""Command log: append a person's command to the log once a key, and answer when readers see its effect."""

import functools
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import asyncpg

from gateway.http.database import connected
from gateway.http.idempotency import Answer
from gateway.http.poll import Poller
from gateway.http.problems import Problem
from runtime.users.commands import Command, CommandTarget, CommandWriter, PreparedCommand
from schemas.errors import Quarantine
from schemas.log.records import Cause

USER = "user"
"""Kind of the cause of commands from a user's application."""
WAIT_S = 5.0
"""Default wait of an answer for the tables, which usually show a command within 50 ms."""


class CommandLog:
    """Commands in three steps: `prepare`, skip the rest where it `is_accepted` already, else `append`.

    A process that ends between two steps leaves nothing half done: the same key gives the same record again.
    """

    def __init__(self, writer: CommandWriter, *, pool: asyncpg.Pool, poller: Poller) -> None:
        self._writer = writer
        self._pool = pool
        self._poller = poller

    async def prepare(self, target: CommandTarget, *, key: str | None, body: bytes) -> PreparedCommand:
        """Return id, fingerprint and keys of the record. `key` is the client's; `body` holds the whole command.

        Raises: Problem 409, where the user's key is destroyed or missing.
        """
        async with connected(self._pool) as connection:
            try:
                return await self._writer.prepare(connection, target, key=key, body=body)
            except Quarantine as error:
                raise Problem(HTTPStatus.CONFLICT, "user_without_key", "nothing can be said of this user") from error

    async def is_accepted(self, prepared: PreparedCommand) -> bool:
        """Return whether the record is accepted and readers see its effect.

        Raises: Problem 409, where a record with another body was accepted under its key.
        """
        async with connected(self._pool) as connection:
            row = await connection.fetchrow(_ACCEPTED, prepared.id)
        if row is not None and row["body_fingerprint"] != prepared.fingerprint:
            raise Problem(HTTPStatus.CONFLICT, "idempotency_key_reused", "this key came with another request before")
        return row is not None

    async def append(
        self, target: CommandTarget, command: Command, prepared: PreparedCommand, *, cause: Cause, wait_s: float | None
    ) -> bool:
        """Append and wait for readers; False where they do not see it within `wait_s`, by default WAIT_S.

        Raises: Retry, where Kafka does not answer; Problem 409, as `is_accepted`.
        """
        await self._writer.append(target, command, prepared, cause)
        is_accepted: Callable[[], Awaitable[bool]] = functools.partial(self.is_accepted, prepared)
        return await self._poller.until(is_accepted, wait_s=WAIT_S if wait_s is None else wait_s)


def accepted(subject_id: str, prepared: PreparedCommand) -> Answer:
    """Return an answer 202 for a command that is in the log and not visible yet."""
    document = {"id": subject_id, "changeset": prepared.id.hex(), "status": "accepted"}
    return Answer(HTTPStatus.ACCEPTED, document)


_ACCEPTED = "SELECT body_fingerprint FROM reads.changesets WHERE id = $1"
