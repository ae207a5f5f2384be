"""The command `tartan verify webhooks`: what is in the log is still what Plaid signed. Needs Kafka, and no Plaid."""

import datetime
from typing import Annotated, Any, NamedTuple

import msgspec
import typer
from rich.table import Table

from cli.output import console_of_lines, finish, say
from ingest.evidence import Evidence, Examiner
from runtime import settings
from runtime.archive.log_reader import LogReader
from runtime.archive.log_scan import looking, records
from runtime.settings import Settings
from schemas.topics import WEBHOOKS

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]


class Missing(NamedTuple):
    """Offsets of a partition that neither topic nor archive has any more."""

    partition: int
    first: int
    last: int


class Examined(NamedTuple):
    """What was found in what is there, and what is not there."""

    evidence: Evidence
    missing: list[Missing]


def verify_webhooks(
    since: Annotated[
        datetime.datetime | None, typer.Option(help="Only those that were received at this time, in UTC, or later.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, max=1_000, help="Failures that are named; all are counted.")] = 20,
    as_json: Json = False,
) -> None:
    """Check signature, hash, time and key of each stored webhook again, offline. Exit code 1 where one fails."""
    moment = None if since is None else since.replace(tzinfo=since.tzinfo or datetime.UTC)
    found = finish(_examined(settings.load(), 0 if moment is None else int(moment.timestamp() * 1000)))
    say(console_of_lines(), _document(found, limit) if as_json else _shown(found, limit))
    raise typer.Exit(1 if found.evidence.violations else 0)


async def _examined(loaded: Settings, since_ms: int) -> Examined:
    examiner, missing = Examiner(), []
    async with looking(LogReader(loaded, WEBHOOKS)) as reader:
        for number, extent in (await reader.completeness(range(loaded.partitions))).items():
            gap = extent.missing()
            missing += [] if gap is None else [Missing(number, *gap)]
            for start, end in [(0, extent.end)] if gap is None else [(0, gap[0]), (gap[1] + 1, extent.end)]:
                async for record in records(reader, number, start, end):
                    if record.timestamp_ms >= since_ms:
                        examiner.look(record)
    return Examined(examiner.evidence, missing)


def _document(found: Examined, limit: int) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(found.evidence)
    missing = [one._asdict() for one in found.missing]
    return {**told, "violations": found.evidence.violations, "failures": told["failures"][:limit], "missing": missing}


def _shown(found: Examined, limit: int) -> Table:
    evidence = found.evidence
    table = Table("webhooks", "number", "where", box=None)
    table.add_row("checked", f"{evidence.checked:,}", "")
    table.add_row("valid", f"{evidence.valid:,}", f"{evidence.without_body:,} by their hash alone: bodies with tokens")
    for key in evidence.keys:
        since, until = (datetime.datetime.fromtimestamp(at, datetime.UTC) for at in (key.first_at, key.last_at))
        table.add_row(f"key {key.key_id}", f"{key.webhooks:,}", f"{since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M}")
    for reason, count in sorted(evidence.reasons.items()):
        places = (f"{one.partition}.{one.offset}" for one in evidence.failures[:limit] if one.reason == reason)
        table.add_row(reason.replace("_", " "), f"{count:,}", ", ".join(places), style="red")
    for gap in found.missing:
        number = f"{gap.last - gap.first + 1:,}"
        table.add_row("not there", number, f"{gap.partition}.{gap.first} to {gap.partition}.{gap.last}", style="yellow")
    return table
