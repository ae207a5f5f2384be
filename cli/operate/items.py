"""The commands `tartan items`: print Items, and quarantine, redrive, approve or reject one."""

from collections.abc import Sequence
from typing import Annotated, Any

import asyncpg
import typer

from cli.operate import tables
from cli.operate.commands import By, DryRun, append_and_wait, command_writer, decided_by, find_item
from cli.output import Json, print_json, print_result, print_text, with_postgres
from projections.read import queries
from projections.store.tables import SCHEMA
from runtime.operators import operator_commands
from runtime.operators.operator_commands import Operator, Outcome
from runtime.scheduler import item_status, runs
from runtime.scheduler.item_status import ItemStatus
from runtime.scheduler.stop_reasons import QUARANTINED
from schemas.errors import Quarantine

RUNS_SHOWN = 10
"""Sync runs of an Item: the results of the last hours, where each run fails."""

items_app = typer.Typer(
    help="Items: show their state, and quarantine, redrive or decide about one.", no_args_is_help=True
)

ItemId = Annotated[str, typer.Argument(metavar="ITEM", help="Plaid's id of the Item.")]


@items_app.command("list")
def list_items(
    only: Annotated[
        str | None,
        typer.Option(help="List only Items in this state: quarantined, stopped, failing or withheld (removals wait)."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="List only Items of this tenant.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=item_status.ITEMS_MAX, help="Largest number of Items.")] = 100,
    as_json: Json = False,
) -> None:
    """List Items, the latest linked first."""
    only = "quarantined" if only == "parked" else only  # the earlier release's name
    if only not in (None, *item_status.ONLY):
        raise typer.BadParameter(f"--only is one of {', '.join(item_status.ONLY)}")
    items = with_postgres(
        lambda connection: item_status.list_items(connection, projection=SCHEMA, only=only, tenant=tenant, limit=limit)
    )
    print_result({"items": items}, tables.items(items), as_json=as_json)


@items_app.command("show")
def show_item(item_id: ItemId, as_json: Json = False) -> None:
    """Show an Item: its state, the reason and remedy of a stop, and its last sync runs."""

    async def work(connection: asyncpg.Connection) -> None:
        item = await find_item(connection, item_id)
        rows = await runs.latest(connection, item_id, limit=RUNS_SHOWN)
        print_result({"item": item, "passes": rows}, tables.item(item, rows), as_json=as_json)

    with_postgres(work)


@items_app.command("park", hidden=True)
@items_app.command("quarantine")
def quarantine_item(
    item_id: ItemId,
    reason: Annotated[str, typer.Option(help="Reason of the quarantine; it is shown wherever the Item is shown.")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Quarantine an Item: it is not synced until it is redriven."""

    async def work(connection: asyncpg.Connection) -> None:
        item = await find_item(connection, item_id)
        if item.stopped in ("unlinked", "erased"):
            raise Quarantine(f"item {item_id} is {item.stopped}: there is nothing to set aside")
        if dry_run:
            text = "is quarantined already" if item.stopped == QUARANTINED else "would be quarantined"
        else:
            is_new = await operator_commands.quarantine(connection, item, reason=reason)
            text = "is quarantined" if is_new else "is quarantined already"
        document = {"item_id": item_id, "outcome": text.replace(" ", "_"), "dry_run": dry_run}
        print_result(document, f"Item {item_id} {text}.", as_json=as_json)

    with_postgres(work)


@items_app.command("redrive")
def redrive_item(item_id: ItemId, by: By = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Process again the withheld records of a quarantined Item, in their order, and let the Item continue."""
    redrive_items([item_id], by=by, dry_run=dry_run, as_json=as_json)


@items_app.command("approve")
def approve_item(item_id: ItemId, by: By = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Remove the transactions that a full resync lacks and the bank has not named since."""
    _decide(item_id, approve=True, by=by, dry_run=dry_run, as_json=as_json)


@items_app.command("reject")
def reject_item(item_id: ItemId, by: By = "", dry_run: DryRun = False, as_json: Json = False) -> None:
    """Keep the transactions that a full resync lacks."""
    _decide(item_id, approve=False, by=by, dry_run=dry_run, as_json=as_json)


def redrive_items(item_ids: Sequence[str], *, by: str, dry_run: bool, as_json: bool) -> None:
    """Redrive quarantined Items and print the outcome of each. Exit code 1 where one is quarantined again."""

    async def work(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        items = [await find_item(connection, item_id) for item_id in item_ids]
        quarantined = [item for item in items if item.stopped == QUARANTINED]
        documents = {item.item_id: _redrive_document(item) for item in items}
        if quarantined and not dry_run:
            async with command_writer() as writer:
                operator = Operator(writer, by=decided_by(by))
                for item in quarantined:
                    command = operator_commands.redrive()
                    documents[item.item_id] |= await append_and_wait(connection, operator, item, command)
        return list(documents.values())

    outcomes = with_postgres(work)
    text = "\n".join(map(_redrive_text, outcomes)) or "Nothing to redrive."
    print_result({"items": outcomes, "dry_run": dry_run}, text, as_json=as_json)
    _exit_for(outcomes)


def _redrive_document(item: ItemStatus) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "outcome": "would_be_redriven" if item.stopped == QUARANTINED else "nothing_to_redrive",
        "withheld": item.withheld,
        "since": min((quarantine.quarantined_at for quarantine in item.quarantines), default=None),
        "reasons": [quarantine.reason for quarantine in item.quarantines],
    }


def _redrive_text(document: dict[str, Any]) -> str:
    item, reasons = document["item_id"], "; ".join(document["reasons"])
    records = tables.count_of(document["withheld"], "record")
    match document["outcome"]:
        case "nothing_to_redrive":
            return f"Item {item} is not quarantined: nothing to redrive."
        case "would_be_redriven":
            since = tables.time_text(document["since"])
            return f"Item {item} would be redriven: {records} withheld, quarantined {since}: {reasons}"
        case Outcome.DONE:
            applied = f"what was withheld is applied ({records})" if document["withheld"] else "nothing was withheld"
            return f"Item {item} is redriven: {applied}, and it is asked about again."
        case Outcome.FAILED_AGAIN:
            return f"Item {item} is quarantined again, and nothing of it was changed: {reasons}"
    return _unread_text(document)


def _decide(item_id: str, *, approve: bool, by: str, dry_run: bool, as_json: bool) -> None:
    async def work(connection: asyncpg.Connection) -> dict[str, Any]:
        item = await find_item(connection, item_id)
        document = {"item_id": item_id, "transactions": item.missing_rows, "changeset": item.missing_changeset_id}
        if not item.missing_rows:
            return document | {"outcome": "nothing_to_decide"}
        if item.stopped == QUARANTINED:
            raise Quarantine(
                f"item {item_id} is quarantined: a decision would be withheld with the rest; redrive it first"
            )
        if dry_run:
            return document | {"outcome": "would_be_decided", "removals": await queries.missing(connection, item_id)}
        command = operator_commands.decision(item, approve=approve, by=decided_by(by))
        async with command_writer() as writer:
            operator = Operator(writer, by=decided_by(by))
            return document | await append_and_wait(connection, operator, item, command)

    document = with_postgres(work)
    if as_json:
        print_json({**document, "dry_run": dry_run})
    else:
        print_text(_decision_text(document, "removed" if approve else "kept"))
        if document.get("removals"):
            print_text(tables.removals(document["removals"]))
    _exit_for([document])


def _decision_text(document: dict[str, Any], verb: str) -> str:
    transactions = f"{tables.count_of(document['transactions'], 'transaction')} of item {document['item_id']}"
    match document["outcome"]:
        case "nothing_to_decide":
            return f"Item {document['item_id']} has no removals that wait for a decision: nothing to do."
        case "would_be_decided":
            return f"{transactions} would be {verb}:"
        case Outcome.DONE:
            exception = ", save those that the bank has named since" if verb == "removed" else ""
            return f"{verb.capitalize()}: {transactions}{exception}."
    return _unread_text(document)


def _unread_text(document: dict[str, Any]) -> str:
    return (
        f"Item {document['item_id']}: appended at {document['partition']}@{document['offset']}, and not read within "
        f"{operator_commands.READ_S_MAX:g} s. Do `tartan projections` and "
        "`tartan streams` run? It counts once they read it."
    )


def _exit_for(outcomes: Sequence[dict[str, Any]]) -> None:
    if any(document["outcome"] in (Outcome.FAILED_AGAIN, Outcome.APPENDED) for document in outcomes):
        raise typer.Exit(1)
