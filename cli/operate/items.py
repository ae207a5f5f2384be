"""The commands `tartan items`: print Items, and quarantine, redrive, approve or reject one."""

from collections.abc import Sequence
from operator import attrgetter, itemgetter
from typing import Annotated, Any

import asyncpg
import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cli.operate.commands import By, DryRun, append_and_wait, command_writer, decided_by, find_item
from cli.output import Json, ago, count_of, print_result, table, time_text, with_postgres
from projections.read import queries
from projections.store.tables import SCHEMA
from runtime.operators import operator_commands
from runtime.operators.operator_commands import Operator, Outcome
from runtime.scheduler import item_status, runs
from runtime.scheduler.item_status import ItemStatus
from runtime.scheduler.runs import FinishedRun
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
    names = ("Item", "tenant", "bank", "state", "failures", "withheld", "removals waiting", "last synced")
    rows = [
        (
            *(row.item_id, row.tenant, row.institution_name or row.institution_id, row.stopped or row.state),
            *(row.attempts, row.withheld, row.missing_rows, ago(row.last_synced_at)),
        )
        for row in items
    ]
    print_result({"items": items}, table(names, rows, ids=["Item"]) if items else "No Items.", as_json=as_json)


@items_app.command("show")
def show_item(item_id: ItemId, as_json: Json = False) -> None:
    """Show an Item: its state, the reason and remedy of a stop, and its last sync runs."""

    async def work(connection: asyncpg.Connection) -> None:
        item = await find_item(connection, item_id)
        rows = await runs.latest(connection, item_id, limit=RUNS_SHOWN)
        print_result({"item": item, "passes": rows}, _format_item(item, rows), as_json=as_json)

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
            raise Quarantine(f"item {item_id} is {item.stopped}: there is nothing to quarantine")
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
    records = count_of(document["withheld"], "record")
    match document["outcome"]:
        case "nothing_to_redrive":
            return f"Item {item} is not quarantined: nothing to redrive."
        case "would_be_redriven":
            since = time_text(document["since"])
            return f"Item {item} would be redriven: {records} withheld, quarantined {since}: {reasons}"
        case Outcome.DONE:
            applied = f"{records} applied that were withheld" if document["withheld"] else "nothing was withheld"
            return f"Item {item} is redriven: {applied}, and it is synced again."
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
    texts: list[RenderableType] = [_decision_text(document, "removed" if approve else "kept")]
    if removals := document.get("removals"):
        names = ("date", "amount", "currency", "name", "account", "transaction")
        fields = itemgetter("date", "amount", "currency", "name", "account_id", "transaction_id")
        rows = [fields({**row, "name": row["merchant_name"] or row["name"]}) for row in removals]
        texts.append(table(names, rows, ids=["transaction"]))
    print_result({**document, "dry_run": dry_run}, *texts, as_json=as_json)
    _exit_for([document])


def _decision_text(document: dict[str, Any], verb: str) -> str:
    transactions = f"{count_of(document['transactions'], 'transaction')} of item {document['item_id']}"
    match document["outcome"]:
        case "nothing_to_decide":
            return f"Item {document['item_id']} has no removals that wait for a decision: nothing to do."
        case "would_be_decided":
            return f"{transactions} would be {verb}:"
        case Outcome.DONE:
            exception = ", except those that the bank has named since" if verb == "removed" else ""
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


def _format_item(item: ItemStatus, sync_runs: Sequence[FinishedRun]) -> RenderableType:
    """Format all fields of an Item that have a value, its quarantines and its last sync runs."""
    error = item.last_error or {}
    removals = (
        f"{item.missing_rows}, by changeset {item.missing_changeset_id}; "
        f"list them with `tartan items approve {item.item_id} --dry-run`"
    )
    fields = {
        "Item": item.item_id,
        "tenant": item.tenant,
        "bank": f"{item.institution_name or ''} ({item.institution_id})",
        "state": " ".join(filter(None, (item.state, item.code))),
        "history": item.history_status,
        "stopped": item.stopped,
        "remedy": item.remedy,
        "failures in a row": str(item.attempts),
        "last error": ": ".join(str(error[name]) for name in ("code", "detail") if error.get(name)),
        "due at": time_text(item.due_at),
        "not before": time_text(item.not_before),
        "last webhook": time_text(item.last_webhook_at),
        "last synced": time_text(item.last_synced_at),
        "bank updated": time_text(item.bank_updated_at),
        "partition": str(item.partition),
        "records withheld": item.withheld,
        "removals waiting": removals if item.missing_rows else None,
    }
    rows = [(name, value) for name, value in fields.items() if value]
    overview = table(("", ""), rows)
    overview.show_header = False
    parts: list[RenderableType] = [overview]
    for quarantine in item.quarantines:
        source = f"from offset {quarantine.first_offset} on, by {quarantine.reader}"
        if quarantine.first_offset < 0:
            source = "without a record of the log"
        text = f"quarantined {ago(quarantine.quarantined_at)} {source}: {quarantine.reason}"
        parts.append(Text(text, style="red"))
    if sync_runs:
        names = ("sync run at", "duration", "cause", "outcome", "pages", "fetched", "error")
        before, after = attrgetter("cause", "outcome", "pages"), attrgetter("added", "modified", "removed")
        runs_rows = [
            (
                *(time_text(row.started_at), f"{row.duration_s:.1f} s", *before(row)),
                *("+{} ~{} -{}".format(*after(row)), (row.error or {}).get("code")),
            )
            for row in sync_runs
        ]
        parts.append(table(names, runs_rows))
    return Group(*parts)
