"""The command `tartan verify`: check that tables, log, topics and archive agree with each other."""

from collections.abc import Mapping
from typing import Annotated

import asyncpg
import typer
from rich.table import Table

from cli.output import Json, print_result, run, with_postgres
from cli.prove.webhooks import verify_webhooks
from projections.verify import verify_tables as invariants
from projections.verify.verify_log import verify_log
from projections.verify.verify_tables import Finding
from runtime import settings
from runtime.settings import Settings
from schemas.errors import Retry

SECONDS_MAX = 3600
"""Limit of one read of all rows, at 50 µs a transaction: 70 million of them."""
DEMO_S = 8.0
"""Duration of changes at the simulated bank: about thirty updates, with corrections, removals and postings."""

verify_app = typer.Typer()
verify_app.command("webhooks")(verify_webhooks)


@verify_app.callback(invoke_without_command=True)
def verify(
    context: typer.Context,
    demo: Annotated[
        bool, typer.Option("--demo", help="Run a short demo and verify its data; no running stage is needed.")
    ] = False,
    no_log: Annotated[bool, typer.Option("--no-log", help="Check only the tables, without Kafka and archive.")] = False,
    settled: Annotated[
        bool, typer.Option("--settled", help="Require that no work is under way: each reader is at the log's end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every invariant of tables, log, topics and archive. Exit code 1 where one is violated."""
    if context.invoked_subcommand is not None:
        return
    loaded = None if no_log else settings.load()
    findings = _verify_demo() if demo else with_postgres(lambda connection: _verify(connection, loaded, settled))
    totals = invariants.totals(findings)
    print_result(totals, _table(findings), as_json=as_json)
    raise typer.Exit(1 if totals["violations"] else 0)


async def _verify(connection: asyncpg.Connection, loaded: Settings | None, is_settled: bool) -> dict[str, Finding]:
    # The limits of the stages are for work that others wait for; nobody waits for this one.
    for limit in ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout"):
        await connection.execute(f"SET {limit} = '{SECONDS_MAX} s'")
    log: dict[str, Finding] = {}
    if loaded is not None:
        # The log first: a missing Kafka is reported before all rows are read.
        try:
            log = await verify_log(loaded, connection, is_settled=is_settled)
        except Retry as error:
            raise Retry(f"{error} (`tartan verify --no-log` checks the tables alone)") from error
    return {**await invariants.verify(connection), **log}


def _verify_demo() -> dict[str, Finding]:
    from sandbox.demo.verify_demo import run_verify_demo

    return run(run_verify_demo(seconds=DEMO_S))


def _table(findings: Mapping[str, Finding]) -> Table:
    table = Table("invariant", "checked", "violations", "for example", box=None)
    for name, finding in findings.items():
        counts = (f"{finding.checked:,}", f"{finding.violations:,}")
        style = "red" if finding.violations else None
        table.add_row(name.replace("_", " "), *counts, "; ".join(finding.examples), style=style)
    return table
