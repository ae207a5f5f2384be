"""A transaction on a real Postgres leaves no connection behind with a transaction in it, however it ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from runtime.postgres.pool import transaction
from schemas.errors import Retry

WRITE = "INSERT INTO tartan.facts (name, value) VALUES ('written', '1')"
IS_WRITTEN = "SELECT EXISTS (SELECT FROM tartan.facts WHERE name = 'written')"


class Connection(asyncpg.Connection):
    """A connection on which a statement, once it was sent, ends as the test says."""

    ends: dict[str, BaseException]

    async def execute(self, query: str, *arguments: object, timeout: float | None = None) -> Any:
        error = self.ends.pop(query, None)
        if error is not None:
            raise error
        return await super().execute(query, *arguments, timeout=timeout)


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Connection]:
    opened: Connection = await asyncpg.connect(database, connection_class=Connection)
    opened.ends = {}
    yield opened
    opened.terminate()


@pytest.fixture
async def another(database: str) -> AsyncIterator[asyncpg.Connection]:
    """One who writes the same row: it waits for whoever has written it and not ended."""
    opened = await asyncpg.connect(database, server_settings={"lock_timeout": "10s"})
    yield opened
    await opened.close()


async def written(connection: asyncpg.Connection, *, ends: BaseException | None = None) -> None:
    """Write the row in a transaction, which ends early where it has to."""
    async with transaction(connection, WRITE):
        if ends is not None:
            raise ends


async def written_after_a_failure(connection: asyncpg.Connection) -> None:
    async with transaction(connection, WRITE):
        with contextlib.suppress(asyncpg.DivisionByZeroError):
            await connection.execute("SELECT 1 / 0")


async def test_a_transaction_begins_with_its_first_statements_and_tells_the_answer(
    connection: Connection, another: asyncpg.Connection
) -> None:
    async with transaction(connection, f"SET LOCAL synchronous_commit = off; {WRITE}; SELECT 1") as answer:
        before = await another.fetchval(IS_WRITTEN)

    assert (answer, before, await another.fetchval(IS_WRITTEN)) == ("SELECT 1", False, True)
    assert not connection.is_in_transaction()


async def test_a_transaction_whose_failure_was_passed_over_is_not_taken_for_committed(
    connection: Connection, another: asyncpg.Connection
) -> None:
    with pytest.raises(Retry, match="rolled a transaction back"):
        await written_after_a_failure(connection)

    assert not await another.fetchval(IS_WRITTEN)
    assert not connection.is_in_transaction()


@pytest.mark.parametrize("error", [KeyError("x"), asyncio.CancelledError()])
async def test_what_ends_a_transaction_early_rolls_it_back_and_its_connection_goes_on(
    connection: Connection, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        await written(connection, ends=error)

    assert not connection.is_in_transaction()
    assert not await connection.fetchval(IS_WRITTEN)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), TimeoutError(), asyncpg.InternalClientError("x")])
@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
async def test_a_connection_of_which_nobody_knows_whether_it_ended_is_closed_and_blocks_no_one(
    connection: Connection, another: asyncpg.Connection, statement: str, error: BaseException
) -> None:
    connection.ends = {statement: error}

    early = KeyError("x") if statement == "ROLLBACK" else None
    with pytest.raises((KeyError, type(error))):
        await written(connection, ends=early)

    assert connection.is_closed()
    await another.execute(WRITE)


async def test_a_stop_during_a_rollback_is_a_stop(connection: Connection) -> None:
    connection.ends = {"ROLLBACK": asyncio.CancelledError()}

    with pytest.raises(asyncio.CancelledError):
        await written(connection, ends=KeyError("x"))
