"""What clients say in the log: a free record each, appended once by its key, and answered when readers see it."""

import functools
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import asyncpg

from gateway.http.database import connected
from gateway.http.poll import Waiting
from gateway.http.problems import Problem
from runtime.users.commands import Command, CommandTarget, CommandWriter, PreparedCommand
from schemas.errors import Quarantine
from schemas.log.records import Cause

USER = "user"
"""Kind of the cause of what a user's application says."""
WAIT_S = 5.0
"""How long an answer waits for the tables where the client says nothing: what is said is usually seen in 50 ms."""


class Sayings:
    """Ask for a `ticket`, look whether it `is_accepted` already, `say` it otherwise.

    A process that ends between two of them leaves nothing half done: the same key gives the same record again.
    """

    def __init__(self, records: CommandWriter, *, pool: asyncpg.Pool, waiting: Waiting) -> None:
        self._records = records
        self._pool = pool
        self._waiting = waiting

    async def prepare(self, about: CommandTarget, *, key: str | None, body: bytes) -> PreparedCommand:
        """The record that a request is to become. `key` is the client's; `body` says all that is asked, and of what.

        Raises: Problem 409, where the user's key is gone.
        """
        async with connected(self._pool) as connection:
            try:
                return await self._records.prepare(connection, about, key=key, body=body)
            except Quarantine as error:
                raise Problem(HTTPStatus.CONFLICT, "user_without_key", "nothing can be said of this user") from error

    async def is_accepted(self, ticket: PreparedCommand) -> bool:
        """Whether the record counts already and readers see what it caused.

        Raises: Problem 409, where a record with another body was accepted under its key.
        """
        async with connected(self._pool) as connection:
            row = await connection.fetchrow(_ACCEPTED, ticket.id)
        if row is not None and row["body_fingerprint"] != ticket.fingerprint:
            raise Problem(HTTPStatus.CONFLICT, "idempotency_key_reused", "this key came with another request before")
        return row is not None

    async def say(
        self, about: CommandTarget, said: Command, ticket: PreparedCommand, *, cause: Cause, wait_s: float | None
    ) -> bool:
        """Append, and wait until readers see it; False where they do not within `wait_s`, by default WAIT_S.

        Raises: Retry, where Kafka does not answer; Problem 409, as `is_accepted`.
        """
        await self._records.append(about, said, ticket, cause)
        is_accepted: Callable[[], Awaitable[bool]] = functools.partial(self.is_accepted, ticket)
        return await self._waiting.until(is_accepted, wait_s=WAIT_S if wait_s is None else wait_s)


_ACCEPTED = "SELECT body_fingerprint FROM reads.changesets WHERE id = $1"
