"""The commands `tartan reviews`: which transactions wait for somebody to say who they are, and the answer."""

from typing import Annotated, Any

import asyncpg
import typer
from rich.table import Table

from cli.operations import decided_by
from cli.output import console_of_lines, say, with_postgres
from projections.read import reviews
from projections.read.reviews import OPEN, ReviewTarget
from runtime import settings
from runtime.kafka.clients import Appended, Appender
from runtime.operators import operator_commands
from runtime.operators.operator_commands import Outcome
from runtime.postgres.pool import snapshot
from runtime.users import keys
from runtime.users.commands import Command, CommandWriter
from runtime.users.vault import Vault
from schemas.errors import Quarantine
from schemas.ids import ID_BYTES
from schemas.log.records import Cause

reviews_app = typer.Typer(
    help="Transactions that are perhaps ones that were known: not counted until somebody decides.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]
By = Annotated[str, typer.Option(help="Who decides; by default the name that is logged in.")]
Review = Annotated[str, typer.Argument(help="The review's id, 32 hex digits.")]


@reviews_app.command("list")
def list_reviews(
    user: Annotated[str, typer.Option(help="Of this user only: the application's own id; with --tenant.")] = "",
    tenant: Annotated[str, typer.Option(help="The tenant whose user it is.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=reviews.REVIEWS_MAX, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """What waits for a decision, the latest first."""
    if bool(user) != bool(tenant):
        raise typer.BadParameter("--user and --tenant go together")

    async def work(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        number = await _user(connection, tenant, user) if user else None
        async with snapshot(connection):
            return (await reviews.list_open(connection, number, limit=limit)).rows

    found = with_postgres(work)
    say(console_of_lines(), {"reviews": found} if as_json else _table(found))


@reviews_app.command("approve")
def approve(
    review: Review,
    own_id: Annotated[str, typer.Option("--is", help="The candidate's id; needed where there are several.")] = "",
    by: By = "",
    as_json: Json = False,
) -> None:
    """Say that the held transaction is one that was known: that one goes on, and it is counted once."""
    _decide(review, approve=True, own_id=own_id or None, by=by, as_json=as_json)


@reviews_app.command("reject")
def reject(review: Review, by: By = "", as_json: Json = False) -> None:
    """Say that the held transaction is a purchase of its own."""
    _decide(review, approve=False, own_id=None, by=by, as_json=as_json)


def _decide(review: str, *, approve: bool, own_id: str | None, by: str, as_json: bool) -> None:
    review_id = _id(review)

    async def work(connection: asyncpg.Connection) -> dict[str, Any]:
        found = await _open(connection, review_id)
        chosen = _candidate(found, own_id) if approve else None
        said = reviews.build_decision(review_id, approve=approve, own_id=chosen, by=decided_by(by))
        at = await _append(connection, found, said, by=decided_by(by))
        if not await operator_commands.is_read(connection, at):
            return {"id": review, "outcome": Outcome.APPENDED, "partition": at.partition, "offset": at.offset}
        after = await reviews.find(connection, review_id)
        if after is None or after.state == OPEN:
            raise Quarantine(f"review {review}: the decision was read and changed nothing; list the reviews again")
        return {"id": review, "outcome": after.state, "chosen": after.chosen}

    told = with_postgres(work)
    is_read = told["outcome"] != Outcome.APPENDED
    later = "" if is_read else ", and not read yet: tartan projections applies it, list the reviews later"
    say(console_of_lines(), told if as_json else f"Review {review}: {told['outcome']}{later}.")
    raise typer.Exit(0 if is_read else 1)


async def _append(connection: asyncpg.Connection, found: ReviewTarget, said: Command, *, by: str) -> Appended:
    loaded = settings.load()
    appender = Appender(loaded, client="operator")
    try:
        records = CommandWriter(loaded, appender, Vault(loaded.master_key()))
        ticket = await records.prepare(connection, found.about)
        return await records.append(found.about, said, ticket, Cause(operator_commands.CAUSE, by=by))
    finally:
        await appender.stop()


async def _open(connection: asyncpg.Connection, review_id: bytes) -> ReviewTarget:
    found = await reviews.find(connection, review_id)
    if found is None:
        raise Quarantine(f"there is no review {review_id.hex()}")
    if found.state != OPEN:
        raise Quarantine(f"review {review_id.hex()} was {found.state} already")
    return found


def _candidate(found: ReviewTarget, own_id: str | None) -> str:
    """The candidate that an approval means. Raises: Quarantine, where it names none that can be one."""
    named = ", ".join(sorted(found.available))
    if own_id is None and len(found.available) != 1:
        raise Quarantine(f"review {found.id.hex()} has {len(found.available)} candidates: name one with --is: {named}")
    if own_id is not None and own_id not in found.available:
        raise Quarantine(f"{own_id} is no candidate of review {found.id.hex()} now: {named}")
    return own_id or named


async def _user(connection: asyncpg.Connection, tenant: str, user_id: str) -> int:
    found = await keys.find(connection, tenant=tenant, user_id=user_id)
    if found is None:
        raise Quarantine(f"tenant {tenant} has no user {user_id}")
    return found.number


def _id(text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != ID_BYTES:
        raise typer.BadParameter("a review's id is 32 hex digits")
    return found


def _table(found: list[dict[str, Any]]) -> Table | str:
    if not found:
        return "Nothing waits for a decision."
    table = Table("review", "held", "is perhaps", "score", "date", "amount", "name", box=None, pad_edge=False)
    for one in found:
        held = one["transaction"]
        table.add_row(one["id"], held["id"], "", "", held["date"], held["amount"], held["name"])
        for candidate in one["candidates"]:
            row = candidate["transaction"]
            table.add_row("", "", row["id"], str(candidate["score"]), row["date"], row["amount"], row["name"])
    return table
