"""The command `tartan verify webhooks`: what is in the log is still what Plaid signed. Needs Kafka, and no Plaid."""

import datetime
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from ingest.evidence import Evidence, Examiner
from operator_console import console_of_lines, finish, say
from runtime import settings
from runtime.scan import scan, whole
from runtime.settings import Settings
from schemas.topics import WEBHOOKS, full_name

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]


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
    raise typer.Exit(1 if found.violations else 0)


async def _examined(loaded: Settings, since_ms: int) -> Evidence:
    topic, examiner = full_name(WEBHOOKS, loaded.topic_prefix), Examiner()
    async for record in scan(loaded, topic, await whole(loaded, topic)):
        if record.timestamp_ms >= since_ms:
            examiner.look(record)
    return examiner.evidence


def _document(found: Evidence, limit: int) -> dict[str, Any]:
    told: dict[str, Any] = msgspec.to_builtins(found)
    return {**told, "violations": found.violations, "failures": told["failures"][:limit]}


def _shown(found: Evidence, limit: int) -> Table:
    table = Table("webhooks", "number", "where", box=None)
    table.add_row("checked", f"{found.checked:,}", "")
    table.add_row("valid", f"{found.valid:,}", f"{found.without_body:,} by their hash alone: bodies with tokens")
    for key in found.keys:
        since, until = (datetime.datetime.fromtimestamp(at, datetime.UTC) for at in (key.first_at, key.last_at))
        table.add_row(f"key {key.key_id}", f"{key.webhooks:,}", f"{since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M}")
    for reason, count in sorted(found.reasons.items()):
        places = (f"{one.partition}.{one.offset}" for one in found.failures[:limit] if one.reason == reason)
        table.add_row(reason.replace("_", " "), f"{count:,}", ", ".join(places), style="red")
    return table
