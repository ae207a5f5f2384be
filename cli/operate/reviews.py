"""The commands `tartan reviews`: list transactions that wait for a decision, and decide."""

from typing import Annotated, Any

import asyncpg
import typer

from cli.operate.commands import By, command_writer, decided_by, user_number
from cli.output import Json, print_result, table, with_postgres
from projections.read import reviews
from projections.read.reviews import OPEN, ReviewTarget
from runtime.operators import operator_commands
from runtime.operators.operator_commands import Outcome
from runtime.postgres.pool import snapshot
from schemas.errors import Quarantine
from schemas.ids import ID_BYTES
from schemas.log.records import Cause

reviews_app = typer.Typer(
    help="Transactions that probably duplicate a known one: not counted until somebody decides.", no_args_is_help=True
)

ReviewId = Annotated[str, typer.Argument(metavar="REVIEW", help="Id of the review, 32 hex digits.")]


@reviews_app.command("list")
def list_reviews(
    user: Annotated[
        str, typer.Option(help="List only reviews of this user, by the application's own id; requires --tenant.")
    ] = "",
    tenant: Annotated[str, typer.Option(help="Tenant that the user belongs to.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=reviews.REVIEWS_MAX, help="Largest number of reviews.")] = 50,
    as_json: Json = False,
) -> None:
    """List the reviews that wait for a decision, the latest first."""
    if bool(user) != bool(tenant):
        raise typer.BadParameter("--user and --tenant go together")

    async def work(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        number = await user_number(connection, tenant, user) if user else None
        async with snapshot(connection):
            return (await reviews.list_open(connection, number, limit=limit)).rows

    rows = with_postgres(work)
    cells: list[tuple[object, ...]] = []
    for review in rows:
        row = review["transaction"]
        cells.append((review["id"], row["id"], None, None, row["date"], row["amount"], row["name"]))
        for candidate in review["candidates"]:
            row = candidate["transaction"]
            cells.append((None, None, row["id"], candidate["score"], row["date"], row["amount"], row["name"]))
    names = ("review", "transaction", "perhaps the same as", "score", "date", "amount", "name")
    text = table(names, cells, ids=names[:3]) if rows else "No review waits for a decision."
    print_result({"reviews": rows}, text, as_json=as_json)


@reviews_app.command("approve")
def approve(
    review: ReviewId,
    match: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help="Known transaction that this one duplicates; required where there are several candidates.",
        ),
    ] = "",
    old_match: Annotated[str, typer.Option("--is", hidden=True, help="Old name of --match.")] = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Decide that the transaction duplicates a known one, which continues and counts once."""
    _decide(review, approve=True, own_id=match or old_match or None, by=by, as_json=as_json)


@reviews_app.command("reject")
def reject(review: ReviewId, by: By = "", as_json: Json = False) -> None:
    """Decide that the transaction is a separate purchase."""
    _decide(review, approve=False, own_id=None, by=by, as_json=as_json)


def _decide(review: str, *, approve: bool, own_id: str | None, by: str, as_json: bool) -> None:
    try:
        review_id = bytes.fromhex(review)
    except ValueError:
        review_id = b""
    if len(review_id) != ID_BYTES:
        raise typer.BadParameter("a review's id is 32 hex digits")
    operator = decided_by(by)

    async def work(connection: asyncpg.Connection) -> dict[str, Any]:
        target = await reviews.find(connection, review_id)
        if target is None:
            raise Quarantine(f"there is no review {review_id.hex()}")
        if target.state != OPEN:
            raise Quarantine(f"review {review_id.hex()} was {target.state} already")
        chosen = _candidate(target, own_id) if approve else None
        command = reviews.build_decision(review_id, approve=approve, own_id=chosen, by=operator)
        async with command_writer() as writer:
            prepared = await writer.prepare(connection, target.about)
            cause = Cause(operator_commands.CAUSE, by=operator)
            appended = await writer.append(target.about, command, prepared, cause)
        if not await operator_commands.is_read(connection, appended):
            offset = {"partition": appended.partition, "offset": appended.offset}
            return {"id": review, "outcome": Outcome.APPENDED, **offset}
        after = await reviews.find(connection, review_id)
        if after is None or after.state == OPEN:
            raise Quarantine(f"review {review}: the decision was read and changed nothing; list the reviews again")
        return {"id": review, "outcome": after.state, "chosen": after.chosen}

    document = with_postgres(work)
    is_read = document["outcome"] != Outcome.APPENDED
    hint = "" if is_read else ", and not read yet: tartan projections applies it, list the reviews later"
    print_result(document, f"Review {review}: {document['outcome']}{hint}.", as_json=as_json)
    raise typer.Exit(0 if is_read else 1)


def _candidate(target: ReviewTarget, own_id: str | None) -> str:
    """Return the candidate of an approval. Raises: Quarantine, where the choice is missing or not available."""
    review, names = target.id.hex(), ", ".join(sorted(target.available))
    if own_id is None and len(target.available) != 1:
        raise Quarantine(f"review {review} has {len(target.available)} candidates: name one with --match: {names}")
    if own_id is not None and own_id not in target.available:
        raise Quarantine(f"{own_id} is no candidate of review {review} now: {names}")
    return own_id or names
