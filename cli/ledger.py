"""The command `tartan ledger`: a user's balances at a date, or what moved month by month."""

import datetime
from collections.abc import Sequence
from typing import Annotated, Any

import asyncpg
import typer
from rich.table import Table

from cli.output import console_of_lines, say, with_postgres
from projections.read import ledger_reports
from projections.read.queries import Row
from runtime.postgres.pool import snapshot
from runtime.users import keys
from schemas import money
from schemas.errors import Quarantine

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]


def ledger(
    user: Annotated[str, typer.Argument(help="The application's own id of the user.")],
    tenant: Annotated[str, typer.Option(help="Whose user it is.")],
    at: Annotated[
        datetime.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Balances with all that is dated until then.")
    ] = None,
    known_at: Annotated[
        datetime.datetime | None, typer.Option(help="Balances as they were known at this time, in UTC.")
    ] = None,
    turnover: Annotated[bool, typer.Option("--turnover", help="What moved, by month and category.")] = False,
    since: Annotated[
        datetime.datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="Turnover from this day on.")
    ] = None,
    until: Annotated[
        datetime.datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Turnover until this day.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the balances of a user's ledger accounts, or with --turnover what was spent and received."""
    if turnover and (at or known_at):
        raise typer.BadParameter("--at and --known-at are for balances, --from and --to for --turnover")
    if not turnover and (since or until):
        raise typer.BadParameter("--from and --to are for --turnover, --at and --known-at for balances")

    async def work(connection: asyncpg.Connection) -> list[Row]:
        async with snapshot(connection):
            found = await keys.find(connection, tenant=tenant, user_id=user)
            if found is None:
                raise Quarantine(f"tenant {tenant} has no user {user}")
            if turnover:
                return await ledger_reports.turnover(connection, found.number, since=_day(since), until=_day(until))
            moment = None if known_at is None else known_at.replace(tzinfo=known_at.tzinfo or datetime.UTC)
            return await ledger_reports.balances(connection, found.number, effective_at=_day(at), known_at=moment)

    rows = with_postgres(work)
    if as_json:
        say(console_of_lines(), {"turnover" if turnover else "balances": rows})
    else:
        say(console_of_lines(), _table(rows, _TURNOVER if turnover else _BALANCES))


_BALANCES = ("class", "reference", "currency", "posted", "pending", "account")
_TURNOVER = ("month", "category", "class", "currency", "layer", "spent", "received", "net")
_AMOUNTS = frozenset({"posted", "pending", "spent", "received", "net"})


def _table(rows: Sequence[Row], columns: Sequence[str]) -> Any:
    if not rows:
        return "Nothing is in the ledger for that."
    table = Table(box=None)
    for column in columns:
        table.add_column(column, justify="right" if column in _AMOUNTS else "left")
    for row in rows:
        table.add_row(
            *(
                money.display_text(row[column], row["currency"]) if column in _AMOUNTS else row[column]
                for column in columns
            )
        )
    return table


def _day(moment: datetime.datetime | None) -> datetime.date | None:
    return None if moment is None else moment.date()
