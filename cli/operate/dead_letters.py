"""The commands `tartan dead-letters`: list, show, redrive and delete records that could not be processed."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import asyncpg
import typer

from cli.operate.commands import By, DryRun
from cli.operate.items import redrive_items
from cli.output import Json, ago, count_of, print_result, table, with_postgres
from runtime.incidents import dead_letters
from runtime.incidents.dead_letters import StoredDeadLetter
from schemas.errors import Quarantine

LETTERS_A_REDRIVE_MAX = 500
"""Dead letters that one `--all` reads; run it again for more."""
REASON_CHARACTERS_MAX = 120

dead_letters_app = typer.Typer(
    help="Records that could not be processed: list, show, redrive and delete them.", no_args_is_help=True
)

_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


@dead_letters_app.command("list")
def list_letters(
    item: Annotated[str | None, typer.Option(help="List only dead letters of this Item, by Plaid's id.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="List only dead letters of this stage: mark_due, streams or projections.")
    ] = None,
    open_only: Annotated[bool, typer.Option("--open", help="List only dead letters that were not redriven.")] = False,
    before: Annotated[
        int | None, typer.Option(help="List only dead letters with a lower number, for the next page.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=dead_letters.LIST_MAX, help="Largest number of dead letters.")] = 100,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first."""
    letters = with_postgres(
        lambda connection: dead_letters.list_letters(
            connection, item_id=item, stage=stage, open_only=open_only, before=before, limit=limit
        )
    )
    document = {"dead_letters": [letter._asdict() for letter in letters]}
    names = ("letter", "stage", "Item", "record", "attempts", "since", "state", "code", "reason")
    rows = [
        (
            *(row.number, row.stage, row.item_id),
            f"{row.topic}/{row.partition}@{'-' if row.source_offset is None else row.source_offset}",
            *(row.attempts, ago(row.quarantined_at)),
            "redriven" if row.redriven_at else "quarantined" if row.is_quarantined else "open",
            *(row.code_version, row.reason[:REASON_CHARACTERS_MAX]),
        )
        for row in letters
    ]
    print_result(document, table(names, rows, ids=["Item"]) if rows else "No dead letters.", as_json=as_json)


@dead_letters_app.command("show")
def show_letter(
    number: Annotated[int, typer.Argument(help="Number of the dead letter.")],
    original: Annotated[
        bool, typer.Option("--original", help="Include the sealed original record, in base64.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a dead letter."""

    async def work(connection: asyncpg.Connection) -> None:
        letter, key, value = await _find(connection, number)
        document: dict[str, Any] = letter._asdict()
        if original:
            parts = {"key": key, "value": value}
            document |= {name: part and base64.b64encode(part).decode() for name, part in parts.items()}
        lines = [f"{name:16} {'' if field is None else field}" for name, field in document.items()]
        print_result(document, *lines, as_json=as_json)

    with_postgres(work)


@dead_letters_app.command("redrive")
def redrive_letters(
    numbers: Annotated[list[int] | None, typer.Argument(help="Numbers of dead letters.", show_default=False)] = None,
    item: Annotated[str | None, typer.Option(help="Redrive all dead letters of this Item, by Plaid's id.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Redrive all dead letters whose Item is quarantined.")] = False,
    by: By = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Redrive the Items of dead letters: all withheld records of each are processed again, in their order."""
    if bool(numbers) + (item is not None) + every != 1:
        raise typer.BadParameter("give numbers of letters, or --item, or --all")
    items = [item] if item is not None else with_postgres(lambda connection: _items_of(connection, numbers or []))
    redrive_items(items, by=by, dry_run=dry_run, as_json=as_json)


@dead_letters_app.command("purge")
def purge_letters(
    before: Annotated[
        datetime | None,
        typer.Option(formats=_TIMES, help="Delete dead letters that were quarantined before this time, in UTC."),
    ] = None,
    number: Annotated[
        int | None, typer.Option(help="Delete the dead letter with this number, even if its Item is still quarantined.")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete dead letters.

    Withheld records of a quarantined Item stay, and so do its dead letters, except the one that --number names.
    """
    if (before is None) == (number is None):
        raise typer.BadParameter("give --before or --number")

    async def work(connection: asyncpg.Connection) -> None:
        until = None if before is None else before.replace(tzinfo=UTC)
        purged = await dead_letters.purge(connection, until, number=number, dry_run=dry_run)
        if number is not None and not purged:
            raise Quarantine(f"there is no dead letter {number}")
        verb = "would be deleted" if dry_run else "deleted"
        text = f"{count_of(len(purged), 'dead letter')} {verb}."
        print_result({"purged": purged, "dry_run": dry_run}, text, as_json=as_json)

    with_postgres(work)


async def _items_of(connection: asyncpg.Connection, numbers: Sequence[int]) -> list[str]:
    """Return the Items of dead letters, each once; without numbers all quarantined Items with an open letter."""
    if not numbers:
        letters = await dead_letters.list_letters(connection, open_only=True, limit=LETTERS_A_REDRIVE_MAX)
        quarantined = [letter.item_id for letter in reversed(letters) if letter.item_id and letter.is_quarantined]
        return list(dict.fromkeys(quarantined))
    items: dict[str, None] = {}
    for number in numbers:
        letter, _, _ = await _find(connection, number)
        if letter.item_id is None:
            raise Quarantine(f"dead letter {number} is of no Item: there is nothing to redrive")
        items[letter.item_id] = None
    return list(items)


async def _find(connection: asyncpg.Connection, number: int) -> tuple[StoredDeadLetter, bytes | None, bytes | None]:
    row = await dead_letters.find(connection, number)
    if row is None:
        raise Quarantine(f"there is no dead letter {number}")
    return row
