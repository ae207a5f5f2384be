"""The operator's commands: `tartan queue`, `tartan items`, `tartan dead-letters`."""

import asyncio
import getpass
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import asyncpg
import typer

from cli import tables as tables
from cli.output import base64_text, connected, console_of_lines, finish, say, with_postgres
from projections.read import queries
from projections.store.tables import SCHEMA
from runtime import settings
from runtime.incidents import dead_letters
from runtime.kafka.clients import Appender
from runtime.operators import operator_commands
from runtime.operators.operator_commands import Operator, Outcome
from runtime.scheduler import item_status, queue, runs
from runtime.scheduler.item_status import ItemStatus
from runtime.scheduler.queue_status import QueueStatus
from runtime.scheduler.stop_reasons import QUARANTINED
from runtime.settings import Settings
from runtime.users.commands import Command, CommandWriter
from runtime.users.vault import Vault
from schemas.errors import Quarantine

WATCH_S = 2.0
"""Between two looks: a look at 100,000 Items takes about a second of one of Postgres' processes."""
LETTERS_A_REDRIVE_MAX = 500
"""Letters that `--all` looks at in one go; run it again for more."""
PASSES_SHOWN = 10
"""Of an Item: what came of the last hours, where each pass fails."""

items_app = typer.Typer(help="Items: how they stand, and what an operator can do about one.", no_args_is_help=True)
letters_app = typer.Typer(
    help="What could not be processed: look at it, try it again, forget it.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
By = Annotated[str, typer.Option(help="Who decides; kept in the log.", envvar="TARTAN_OPERATOR", show_default=False)]
Item = Annotated[str, typer.Argument(help="Plaid's id of the Item.")]


def show_queue(
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds, until Ctrl-C.")] = False,
) -> None:
    """Show what waits, runs, is delayed, quarantined, stopped or failed, in the whole installation."""
    finish(_show_queue(as_json=as_json, watch=watch))


async def _show_queue(*, as_json: bool, watch: bool) -> None:
    console = console_of_lines()
    loaded = settings.load()
    async with connected(loaded) as connection:
        while True:
            found = await _status(connection, loaded)
            if watch and not as_json:
                console.clear()
            say(console, found if as_json else tables.queue(found))
            if not watch:
                return
            await asyncio.sleep(WATCH_S)


async def _status(connection: asyncpg.Connection, loaded: Settings) -> QueueStatus:
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return await queue.status(connection, loaded)


@items_app.command("list")
def list_items(
    only: Annotated[str | None, typer.Option(help="quarantined, stopped, failing or withheld (removals wait).")] = None,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=item_status.ITEMS_MAX, help="Items at most.")] = 100,
    as_json: Json = False,
) -> None:
    """List Items, the latest linked first."""
    if only not in (None, *item_status.ONLY):
        raise typer.BadParameter(f"--only is one of {', '.join(item_status.ONLY)}")

    async def work(connection: asyncpg.Connection) -> None:
        found = await item_status.list_items(connection, projection=SCHEMA, only=only, tenant=tenant, limit=limit)
        say(console_of_lines(), {"items": found} if as_json else tables.items(found))

    with_postgres(work)


@items_app.command("show")
def show_item(item_id: Item, as_json: Json = False) -> None:
    """Show an Item: its state, why it is silent, what to do, and the last passes over it."""

    async def work(connection: asyncpg.Connection) -> None:
        found = await _item(connection, item_id)
        passes = await runs.latest(connection, item_id, limit=PASSES_SHOWN)
        say(console_of_lines(), {"item": found, "passes": passes} if as_json else tables.item(found, passes))

    with_postgres(work)


@items_app.command("quarantine")
def quarantine_item(
    item_id: Item,
    reason: Annotated[str, typer.Option(help="Why; shown wherever the Item is.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Set an Item aside: nothing is asked about it until it is redriven."""

    async def work(connection: asyncpg.Connection) -> None:
        found = await _item(connection, item_id)
        if found.stopped in ("unlinked", "erased"):
            raise Quarantine(f"item {item_id} is {found.stopped}: there is nothing to set aside")
        if dry_run:
            told = "is quarantined already" if found.stopped == QUARANTINED else "would be quarantined"
        else:
            told = (
                "is quarantined"
                if await operator_commands.quarantine(connection, found, reason=reason)
                else "is quarantined already"
            )
        outcome = {"item_id": item_id, "outcome": told.replace(" ", "_"), "dry_run": dry_run}
        say(console_of_lines(), outcome if as_json else f"Item {item_id} {told}.")

    with_postgres(work)


@items_app.command("redrive")
def redrive_item(item_id: Item, by: By = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Try again what is withheld of a quarantined Item, in its order, and let the Item go on."""
    _redrive([item_id], by=by, dry_run=dry_run, as_json=as_json)


@items_app.command("approve")
def approve_item(item_id: Item, by: By = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Remove the transactions that a restated history lacks and the bank has not named since."""
    _decide(item_id, approve=True, by=by, dry_run=dry_run, as_json=as_json)


@items_app.command("reject")
def reject_item(item_id: Item, by: By = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Keep the transactions that a restated history lacks."""
    _decide(item_id, approve=False, by=by, dry_run=dry_run, as_json=as_json)


@letters_app.command("list")
def list_letters(
    item: Annotated[str | None, typer.Option(help="Of this Item only.")] = None,
    stage: Annotated[str | None, typer.Option(help="Of this stage only: mark_due, streams or projections.")] = None,
    open_only: Annotated[bool, typer.Option("--open", help="Only those that no redrive dealt with.")] = False,
    before: Annotated[int | None, typer.Option(help="Only those with a lower number: the next page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=dead_letters.LIST_MAX, help="Letters at most.")] = 100,
    as_json: Json = False,
) -> None:
    """List dead letters, newest first."""

    async def work(connection: asyncpg.Connection) -> None:
        found = await dead_letters.list_letters(
            connection, item_id=item, stage=stage, open_only=open_only, before=before, limit=limit
        )
        told = {"dead_letters": [one._asdict() for one in found]}
        say(console_of_lines(), told if as_json else tables.letters(found))

    with_postgres(work)


@letters_app.command("show")
def show_letter(
    number: Annotated[int, typer.Argument(help="Number of the letter.")],
    original: Annotated[bool, typer.Option("--original", help="With the sealed original, in base64.")] = False,
    as_json: Json = False,
) -> None:
    """Show a dead letter."""

    async def work(connection: asyncpg.Connection) -> None:
        found = await dead_letters.find(connection, number)
        if found is None:
            raise Quarantine(f"there is no dead letter {number}")
        kept, key, value = found
        told: dict[str, Any] = kept._asdict()
        if original:
            told |= {"key": base64_text(key), "value": base64_text(value)}
        console = console_of_lines()
        if as_json:
            say(console, told)
            return
        for name, shown in told.items():
            console.print(f"{name:16} {'' if shown is None else shown}", markup=False, highlight=False)

    with_postgres(work)


@letters_app.command("redrive")
def redrive_letters(
    numbers: Annotated[list[int] | None, typer.Argument(help="Numbers of letters.", show_default=False)] = None,
    item: Annotated[str | None, typer.Option(help="All of this Item.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All whose Item is quarantined.")] = False,
    by: By = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Redrive the Items of dead letters: all that is withheld of each is tried again, in its order."""
    if bool(numbers) + (item is not None) + every != 1:
        raise typer.BadParameter("give numbers of letters, or --item, or --all")
    items = [item] if item is not None else with_postgres(lambda connection: _items_of(connection, numbers or []))
    _redrive(items, by=by, dry_run=dry_run, as_json=as_json)


@letters_app.command("purge")
def purge_letters(
    before: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Those set aside before this time, UTC."),
    ] = None,
    number: Annotated[int | None, typer.Option(help="This one, even if its Item is still quarantined.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Delete dead letters. What is withheld of a quarantined Item stays, and so do its letters unless they are named."""
    if (before is None) == (number is None):
        raise typer.BadParameter("give --before or --number")

    async def work(connection: asyncpg.Connection) -> None:
        until = None if before is None else before.replace(tzinfo=UTC)
        found = await dead_letters.purge(connection, until, number=number, dry_run=dry_run)
        if number is not None and not found:
            raise Quarantine(f"there is no dead letter {number}")
        would = "would be deleted" if dry_run else "deleted"
        told = {"purged": found, "dry_run": dry_run}
        say(console_of_lines(), told if as_json else f"{tables.count_of(len(found), 'dead letter')} {would}.")

    with_postgres(work)


async def _items_of(connection: asyncpg.Connection, numbers: Sequence[int]) -> list[str]:
    """The Items of letters, each once; without numbers of all whose Item is quarantined."""
    if not numbers:
        found = await dead_letters.list_letters(connection, open_only=True, limit=LETTERS_A_REDRIVE_MAX)
        return list(dict.fromkeys(one.item_id for one in reversed(found) if one.item_id and one.is_quarantined))
    items: dict[str, None] = {}
    for number in numbers:
        letter = await dead_letters.find(connection, number)
        if letter is None:
            raise Quarantine(f"there is no dead letter {number}")
        if letter[0].item_id is None:
            raise Quarantine(f"dead letter {number} is of no Item: there is nothing to redrive")
        items[letter[0].item_id] = None
    return list(items)


def _redrive(items: Sequence[str], *, by: str, dry_run: bool, as_json: bool) -> None:
    async def work(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        found = [await _item(connection, item_id) for item_id in items]
        quarantined = [one for one in found if one.stopped == QUARANTINED]
        told = {one.item_id: _quarantined_told(one) for one in found}
        if quarantined and not dry_run:
            async with _operator(by) as operator:
                for one in quarantined:
                    told[one.item_id] |= await _append(connection, operator, one, operator_commands.redrive())
        return list(told.values())

    outcomes = with_postgres(work)
    text = "\n".join(map(_redriven_text, outcomes)) or "Nothing to redrive."
    say(console_of_lines(), {"items": outcomes, "dry_run": dry_run} if as_json else text)
    _exit_for(outcomes)


def _quarantined_told(item: ItemStatus) -> dict[str, Any]:
    since = min((quarantined.quarantined_at for quarantined in item.quarantines), default=None)
    reasons = [quarantined.reason for quarantined in item.quarantines]
    outcome = "would_be_redriven" if item.stopped == QUARANTINED else "nothing_to_redrive"
    return {"item_id": item.item_id, "outcome": outcome, "withheld": item.withheld, "since": since, "reasons": reasons}


def _redriven_text(told: dict[str, Any]) -> str:
    item, reasons = told["item_id"], "; ".join(told["reasons"])
    match told["outcome"]:
        case "nothing_to_redrive":
            return f"Item {item} is not quarantined: nothing to redrive."
        case "would_be_redriven":
            held = f"{tables.count_of(told['withheld'], 'record')} withheld, quarantined {tables.moment(told['since'])}"
            return f"Item {item} would be redriven: {held}: {reasons}"
        case Outcome.DONE:
            held = f"what was withheld is applied ({tables.count_of(told['withheld'], 'record')})"
            applied = held if told["withheld"] else "nothing was withheld"
            return f"Item {item} is redriven: {applied}, and it is asked about again."
        case Outcome.FAILED_AGAIN:
            return f"Item {item} is quarantined again, and nothing of it was changed: {reasons}"
    return _unread_text(told)


def _decide(item_id: str, *, approve: bool, by: str, dry_run: bool, as_json: bool) -> None:
    async def work(connection: asyncpg.Connection) -> dict[str, Any]:
        item = await _item(connection, item_id)
        told = {"item_id": item_id, "transactions": item.missing_rows, "changeset": item.missing_changeset_id}
        if not item.missing_rows:
            return told | {"outcome": "nothing_to_decide"}
        if item.stopped == QUARANTINED:
            raise Quarantine(
                f"item {item_id} is quarantined: a decision would be withheld with the rest; redrive it first"
            )
        if dry_run:
            return told | {"outcome": "would_be_decided", "removals": await queries.missing(connection, item_id)}
        said = operator_commands.decision(item, approve=approve, by=decided_by(by))
        async with _operator(by) as operator:
            return told | await _append(connection, operator, item, said)

    told = with_postgres(work)
    console = console_of_lines()
    say(console, {**told, "dry_run": dry_run} if as_json else _decided_text(told, "removed" if approve else "kept"))
    if not as_json and told.get("removals"):
        say(console, tables.removals(told["removals"]))
    _exit_for([told])


def _decided_text(told: dict[str, Any], verb: str) -> str:
    what = f"{tables.count_of(told['transactions'], 'transaction')} of item {told['item_id']}"
    match told["outcome"]:
        case "nothing_to_decide":
            return f"Item {told['item_id']} has no removals that wait for a decision: nothing to do."
        case "would_be_decided":
            return f"{what} would be {verb}:"
        case Outcome.DONE:
            save = ", save those that the bank has named since" if verb == "removed" else ""
            return f"{verb.capitalize()}: {what}{save}."
    return _unread_text(told)


async def _append(
    connection: asyncpg.Connection, operator: Operator, item: ItemStatus, said: Command
) -> dict[str, Any]:
    """Append, and wait for what comes of it."""
    at = await operator.append(connection, item, said)
    place = {"partition": at.partition, "offset": at.offset}
    if not await operator_commands.is_read(connection, at):
        return {"outcome": Outcome.APPENDED, **place}
    after = await _item(connection, item.item_id)
    if after.stopped == QUARANTINED:
        return {
            "outcome": Outcome.FAILED_AGAIN,
            "reasons": [quarantined.reason for quarantined in after.quarantines],
            **place,
        }
    if (
        after.missing_rows
        and after.missing_changeset_id == item.missing_changeset_id
        and item.missing_rows
        and said.events
    ):
        raise Quarantine(f"item {item.item_id}: the decision was read and changed nothing; look at its history")
    return {"outcome": Outcome.DONE, **place}


def _unread_text(told: dict[str, Any]) -> str:
    return (
        f"Item {told['item_id']}: appended at {told['partition']}@{told['offset']}, and not read within "
        f"{operator_commands.READ_S_MAX:g} s. Do `tartan projections` and "
        "`tartan streams` run? It counts once they read it."
    )


@asynccontextmanager
async def _operator(by: str) -> AsyncIterator[Operator]:
    loaded = settings.load()
    appender = Appender(loaded, client="operator")
    try:
        yield Operator(CommandWriter(loaded, appender, Vault(loaded.master_key())), by=decided_by(by))
    finally:
        await appender.stop()


def decided_by(given: str) -> str:
    """Who decides: as told, or the name that is logged in here."""
    try:
        return given or getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without names
        return "operator"


async def _item(connection: asyncpg.Connection, item_id: str) -> ItemStatus:
    found = await item_status.find(connection, item_id, projection=SCHEMA)
    if found is None:
        raise Quarantine(f"there is no item {item_id}, or its user was erased")
    return found


def _exit_for(outcomes: Sequence[dict[str, Any]]) -> None:
    if any(told["outcome"] in (Outcome.FAILED_AGAIN, Outcome.APPENDED) for told in outcomes):
        raise typer.Exit(1)
