"""The commands `tartan verify` and `tartan verify webhooks`: check stored data against each other, and signatures."""

import datetime
from typing import Annotated

import asyncpg
import msgspec
import typer
from rich.text import Text

from cli.output import Json, print_result, run, table, with_postgres
from ingest.evidence import Evidence, EvidenceChecker
from projections.verify import verify_tables as invariants
from projections.verify.verify_log import verify_log
from projections.verify.verify_tables import Finding
from runtime import settings
from runtime.archive.log_reader import LogReader
from runtime.archive.log_scan import looking, records
from runtime.settings import Settings
from schemas.errors import Retry
from schemas.topics import WEBHOOKS

SECONDS_MAX = 3600
"""Limit of one read of all rows, at 50 µs a transaction: 70 million of them."""
DEMO_S = 8.0
"""Duration of changes at the simulated bank: about thirty updates, with corrections, removals and postings."""

verify_app = typer.Typer()


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
    if demo:
        from sandbox.demo.verify_demo import run_verify_demo

        findings = run(run_verify_demo(seconds=DEMO_S))
    else:
        findings = with_postgres(lambda connection: _verify(connection, loaded, settled))
    totals = invariants.totals(findings)
    text = table(("invariant", "checked", "violations", "for example"))
    for name, finding in findings.items():
        cells = (name.replace("_", " "), f"{finding.checked:,}", f"{finding.violations:,}", "; ".join(finding.examples))
        text.add_row(*map(Text, cells), style="red" if finding.violations else None)
    print_result(totals, text, as_json=as_json)
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


@verify_app.command("webhooks")
def verify_webhooks(
    since: Annotated[
        datetime.datetime | None, typer.Option(help="Verify only webhooks received at this time or later, in UTC.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, max=1_000, help="Largest number of failures to name; all are counted.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """Check signature, hash, time and key of each stored webhook again, offline. Exit code 1 where one fails."""
    time = None if since is None else since.replace(tzinfo=since.tzinfo or datetime.UTC)
    evidence, gaps = run(_examine(settings.load(), 0 if time is None else int(time.timestamp() * 1000)))
    document = {
        **msgspec.to_builtins(evidence),
        "violations": evidence.violations,
        "failures": evidence.failures[:limit],
        "missing": [{"partition": partition, "first": first, "last": last} for partition, first, last in gaps],
    }
    by_hash = f"{evidence.without_body:,} by their hash alone: bodies with tokens"
    rows: list[tuple[str, int, str, str | None]] = [
        ("checked", evidence.checked, "", None),
        ("valid", evidence.valid, by_hash, None),
    ]
    for key in evidence.keys:
        begin, end = (datetime.datetime.fromtimestamp(time, datetime.UTC) for time in (key.first_at, key.last_at))
        rows.append((f"key {key.key_id}", key.webhooks, f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}", None))
    for reason, count in sorted(evidence.reasons.items()):
        failures = [failure for failure in evidence.failures[:limit] if failure.reason == reason]
        offsets = ", ".join(f"{failure.partition}.{failure.offset}" for failure in failures)
        rows.append((reason.replace("_", " "), count, offsets, "red"))
    rows += [
        ("missing", last - first + 1, f"{number}.{first} to {number}.{last}", "yellow") for number, first, last in gaps
    ]
    text = table(("webhooks", "number", "offsets or times"))
    for name, number, detail, style in rows:
        text.add_row(name, f"{number:,}", detail, style=style)
    print_result(document, text, as_json=as_json)
    raise typer.Exit(1 if evidence.violations else 0)


async def _examine(loaded: Settings, since_ms: int) -> tuple[Evidence, list[tuple[int, int, int]]]:
    """Return the evidence of the stored webhooks, and partition, first and last offset of what is stored no more."""
    checker, gaps = EvidenceChecker(), []
    async with looking(LogReader(loaded, WEBHOOKS)) as reader:
        for number, extent in (await reader.completeness(range(loaded.partitions))).items():
            missing = extent.missing()
            gaps += [] if missing is None else [(number, *missing)]
            ranges = [(0, extent.end)] if missing is None else [(0, missing[0]), (missing[1] + 1, extent.end)]
            for start, end in ranges:
                async for record in records(reader, number, start, end):
                    if record.timestamp_ms >= since_ms:
                        checker.check(record)
    return checker.evidence, gaps
