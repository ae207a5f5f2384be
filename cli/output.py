"""Output: run a command, connect it to Postgres, and print its result as JSON for programs or text for people."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, TypeVar

import asyncpg
import msgspec
import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from runtime import logs, settings
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.postgres.pool import CONNECT_TIMEOUT_S, server_settings
from runtime.settings import Settings
from schemas.errors import Retry

Result = TypeVar("Result")

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, on the last line.")]
"""The option `--json` of every command."""

COLUMNS_MIN = 240
"""Width of tables: ids and a reason of 120 characters. A narrower terminal wraps lines, and no id is cut."""
_TRAILING_BLANKS = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$")


def print_result(document: object, *texts: RenderableType, as_json: bool) -> None:
    """Print a result as JSON for programs, else as texts and tables for people."""
    if as_json:
        print_json(document)
        return
    for text in texts:
        print_text(text)


def print_json(document: object) -> None:
    """Print a document as one line of JSON."""
    typer.echo(msgspec.json.encode(document).decode())


def print_text(text: RenderableType) -> None:
    """Print text or a table; markup in it is not interpreted, since banks and users write names and categories."""
    console = wide_console()
    if isinstance(text, str):
        console.print(text, markup=False, highlight=False)
        return
    with console.capture() as captured:
        console.print(text)
    # A table pads its lines with blanks, which a narrower terminal shows as empty lines.
    typer.echo("\n".join(_TRAILING_BLANKS.sub(r"\1", line) for line in captured.get().splitlines()))


def wide_console() -> Console:
    """Return a console that breaks no line, so that ids can be copied and piped whole."""
    console = Console(soft_wrap=True, markup=False)
    if "COLUMNS" not in os.environ:
        console.width = max(console.width, COLUMNS_MIN)
    return console


def table(
    headings: Iterable[str],
    rows: Iterable[Sequence[object]] = (),
    *,
    right: Collection[str] = (),
    ids: Collection[str] = (),
) -> Table:
    """Build a table. None is an empty cell; columns `right` are aligned right, columns `ids` are never wrapped."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        justify: Any = "right" if heading in right else "left"
        result.add_column(heading, justify=justify, overflow="fold", no_wrap=heading in ids)
    for row in rows:
        result.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return result


def count_of(number: int, noun: str) -> str:
    """Format a number with its noun in singular or plural."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def time_text(time: datetime | None) -> str | None:
    """Format a time to the second."""
    return None if time is None else time.strftime("%Y-%m-%d %H:%M:%S UTC")


def span(seconds: float | None) -> str | None:
    """Format a duration in its largest unit."""
    if seconds is None:
        return None
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def span_between(begin: datetime | None, end: datetime | None) -> str | None:
    """Format the duration between two times, which is not negative."""
    return None if begin is None or end is None else span(max((end - begin).total_seconds(), 0.0))


def ago(time: datetime | None) -> str | None:
    """Format the duration since a time."""
    return None if time is None else f"{span_between(time, datetime.now(time.tzinfo))} ago"


def with_postgres(work: Callable[[asyncpg.Connection], Awaitable[Result]]) -> Result:
    """Run work that needs one connection to Postgres."""

    async def connected_work() -> Result:
        async with connected(settings.load()) as connection:
            return await work(connection)

    return run(connected_work())


@asynccontextmanager
async def connected(loaded: Settings) -> AsyncIterator[asyncpg.Connection]:
    """Connect to Postgres. Raises: Retry, where it does not answer or has other tables than this code."""
    dsn = loaded.postgres_dsn.get_secret_value()
    options = server_settings(loaded, "operator")
    try:
        connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S, server_settings=options)
    except POSTGRES_ERRORS as error:
        raise Retry(f"no database at {logs.mask(dsn)}: {str(error) or type(error).__name__}") from error
    try:
        yield connection
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InvalidSchemaNameError) as error:
        raise Retry(f"the tables of the database are not those of this code ({error}): run `tartan migrate`") from error
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.QueryCanceledError) as error:
        raise Retry(f"Postgres: {type(error).__name__}") from error
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a command's work to its end, or until Ctrl-C."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
