"""The command `tartan verify`: does all that is stored still agree with itself."""

from collections.abc import Mapping
from typing import Annotated, Any

import asyncpg
import typer
from rich.table import Table

from cli.kafka.webhooks import verify_webhooks
from cli.output import console_of_lines, finish, say, with_postgres
from projections.verify import verify_tables as invariants
from projections.verify.verify_log import verify_log
from projections.verify.verify_tables import Finding
from runtime import settings
from runtime.settings import Settings
from schemas.errors import Retry

SECONDS_MAX = 3600
"""One read of all rows, 50 µs a transaction: 70 million of them."""

DEMO_S = 8.0
"""Of changes at the simulated bank: about thirty updates, with corrections, removals and postings among them."""

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]


verify_app = typer.Typer()
verify_app.command("webhooks")(verify_webhooks)


@verify_app.callback(invoke_without_command=True)
def verify(
    context: typer.Context,
    demo: Annotated[
        bool, typer.Option("--demo", help="Run a short demo first, and verify that: needs nothing that runs.")
    ] = False,
    no_log: Annotated[bool, typer.Option("--no-log", help="The tables alone, without Kafka and archive.")] = False,
    settled: Annotated[
        bool, typer.Option("--settled", help="Nothing is under way: each reader must stand at the log's end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every invariant of tables, log, topics and archive. Exit code 1 where one is violated."""
    if context.invoked_subcommand is not None:
        return
    given = None if no_log else settings.load()
    found = _of_demo() if demo else with_postgres(lambda connection: _of_all(connection, given, is_settled=settled))
    told = invariants.totals(found)
    say(console_of_lines(), told if as_json else _table(found))
    raise typer.Exit(1 if told["violations"] else 0)


async def _of_all(connection: asyncpg.Connection, given: Settings | None, *, is_settled: bool) -> dict[str, Finding]:
    # The limits of the stages are for work that others wait for; nobody waits for this one.
    for limit in ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"):
        await connection.execute(f"SET {limit} = '{SECONDS_MAX} s'")
    # The log first: where Kafka is away, that is said before all rows are read.
    log = {} if given is None else await _of_log(connection, given, is_settled=is_settled)
    return {**await invariants.verify(connection), **log}


async def _of_log(connection: asyncpg.Connection, given: Settings, *, is_settled: bool) -> dict[str, Finding]:
    try:
        return await verify_log(given, connection, is_settled=is_settled)
    except Retry as error:
        raise Retry(f"{error} (`tartan verify --no-log` checks the tables alone)") from error


def _of_demo() -> dict[str, Finding]:
    from sandbox.demo.verify_demo import run_verify_demo

    return finish(run_verify_demo(seconds=DEMO_S))


def _table(found: Mapping[str, Finding]) -> Any:
    table = Table("invariant", "checked", "violations", "for example", box=None)
    for name, one in found.items():
        table.add_row(
            name.replace("_", " "),
            f"{one.checked:,}",
            f"{one.violations:,}",
            "; ".join(one.examples),
            style="red" if one.violations else None,
        )
    return table
