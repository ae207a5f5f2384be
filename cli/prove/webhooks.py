"""The command `tartan verify webhooks`: verify the signatures of stored webhooks again, without Plaid."""

import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
import typer
from rich.table import Table

from cli.output import Json, print_result, run
from ingest.evidence import Evidence, EvidenceChecker
from runtime import settings
from runtime.archive.log_reader import LogReader
from runtime.archive.log_scan import looking, records
from runtime.settings import Settings
from schemas.topics import WEBHOOKS


class Gap(NamedTuple):
    """Offsets of a partition that neither topic nor archive has any more."""

    partition: int
    first: int
    last: int


class Examination(NamedTuple):
    """Evidence of the stored webhooks, and the gaps between them."""

    evidence: Evidence
    gaps: list[Gap]


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
    examination = run(_examine(settings.load(), 0 if time is None else int(time.timestamp() * 1000)))
    print_result(_document(examination, limit), _table(examination, limit), as_json=as_json)
    raise typer.Exit(1 if examination.evidence.violations else 0)


async def _examine(loaded: Settings, since_ms: int) -> Examination:
    checker, gaps = EvidenceChecker(), []
    async with looking(LogReader(loaded, WEBHOOKS)) as reader:
        for number, extent in (await reader.completeness(range(loaded.partitions))).items():
            missing = extent.missing()
            gaps += [] if missing is None else [Gap(number, *missing)]
            ranges = [(0, extent.end)] if missing is None else [(0, missing[0]), (missing[1] + 1, extent.end)]
            for start, end in ranges:
                async for record in records(reader, number, start, end):
                    if record.timestamp_ms >= since_ms:
                        checker.check(record)
    return Examination(checker.evidence, gaps)


def _document(examination: Examination, limit: int) -> dict[str, Any]:
    evidence: dict[str, Any] = msgspec.to_builtins(examination.evidence)
    failures, gaps = evidence["failures"][:limit], [gap._asdict() for gap in examination.gaps]
    return {**evidence, "violations": examination.evidence.violations, "failures": failures, "missing": gaps}


def _table(examination: Examination, limit: int) -> Table:
    evidence = examination.evidence
    table = Table("webhooks", "number", "where", box=None)
    table.add_row("checked", f"{evidence.checked:,}", "")
    table.add_row("valid", f"{evidence.valid:,}", f"{evidence.without_body:,} by their hash alone: bodies with tokens")
    for key in evidence.keys:
        since, until = (datetime.datetime.fromtimestamp(time, datetime.UTC) for time in (key.first_at, key.last_at))
        table.add_row(f"key {key.key_id}", f"{key.webhooks:,}", f"{since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M}")
    for reason, count in sorted(evidence.reasons.items()):
        failures = [failure for failure in evidence.failures[:limit] if failure.reason == reason]
        offsets = ", ".join(f"{failure.partition}.{failure.offset}" for failure in failures)
        table.add_row(reason.replace("_", " "), f"{count:,}", offsets, style="red")
    for gap in examination.gaps:
        number = f"{gap.last - gap.first + 1:,}"
        table.add_row("not there", number, f"{gap.partition}.{gap.first} to {gap.partition}.{gap.last}", style="yellow")
    return table
