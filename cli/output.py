"""How the operator's commands reach Postgres and speak: one line of JSON for programs, tables for people."""

import asyncio
import base64
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
import msgspec
import typer
from rich.console import Console

from runtime import logs, settings
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.postgres.pool import CONNECT_TIMEOUT_S, server_settings
from runtime.settings import Settings
from schemas.errors import Retry

Result = TypeVar("Result")

COLUMNS_MIN = 240
"""Width of tables: ids and a reason of 120 characters. A narrower terminal breaks the lines, and no id is cut up."""
_BLANKS = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$")


def say(console: Console, told: object) -> None:
    """Print for people what is text or a table, for programs everything else as one line of JSON."""
    if isinstance(told, str):
        console.print(told, markup=False, highlight=False)
    elif hasattr(told, "__rich_console__") or hasattr(told, "__rich__"):
        with console.capture() as captured:
            console.print(told)
        # A table fills its lines with blanks, which a narrower terminal shows as empty lines.
        typer.echo("\n".join(_BLANKS.sub(r"\1", line) for line in captured.get().splitlines()))
    else:
        typer.echo(msgspec.json.encode(told).decode())


def console_of_lines() -> Console:
    """A console that breaks no line: what is copied from it, or piped into another command, stays whole."""
    # Names and categories are written by banks and users: "[red]" in one is no colour.
    console = Console(soft_wrap=True, markup=False)
    if "COLUMNS" not in os.environ:
        console.width = max(console.width, COLUMNS_MIN)
    return console


def base64_text(value: bytes | None) -> str | None:
    """Bytes as text."""
    return None if value is None else base64.b64encode(value).decode()


def with_postgres(work: Callable[[asyncpg.Connection], Awaitable[Result]]) -> Result:
    """Run what needs one connection."""

    async def run() -> Result:
        async with connected(settings.load()) as connection:
            return await work(connection)

    return finish(run())


@asynccontextmanager
async def connected(loaded: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection to Postgres. Raises: Retry, where there is none, or no tables."""
    dsn = loaded.postgres_dsn.get_secret_value()
    try:
        connection = await asyncpg.connect(
            dsn, timeout=CONNECT_TIMEOUT_S, server_settings=server_settings(loaded, "operator")
        )
    except POSTGRES_ERRORS as error:
        raise Retry(f"no database at {logs.mask(dsn)}: {str(error) or type(error).__name__}") from error
    try:
        yield connection
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError) as error:
        raise Retry(f"the database is not as this code wants it ({error}): run `tartan migrate`") from error
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.QueryCanceledError) as error:
        raise Retry(f"Postgres: {type(error).__name__}") from error
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)


def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's work to its end, or until Ctrl-C."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
