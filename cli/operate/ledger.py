"""The command `tartan ledger`: print a user's balances at a date, or the turnover month by month."""

import datetime
from typing import Annotated

import asyncpg
import typer

from cli.operate.commands import user_number
from cli.output import Json, print_result, table, with_postgres
from projections.read import ledger_reports
from projections.read.queries import Row
from runtime.postgres.pool import snapshot
from schemas import money

BALANCES = ("class", "reference", "currency", "posted", "pending", "account")
TURNOVER = ("month", "category", "class", "currency", "layer", "spent", "received", "net")
_AMOUNTS = frozenset({"posted", "pending", "spent", "received", "net"})
_DAY = ["%Y-%m-%d"]


def ledger(
    user: Annotated[str, typer.Argument(help="The application's own id of the user.")],
    tenant: Annotated[str, typer.Option(help="Tenant that the user belongs to.")],
    effective_at: Annotated[
        datetime.datetime | None, typer.Option("--at", formats=_DAY, help="Last day that counts for balances.")
    ] = None,
    known_at: Annotated[
        datetime.datetime | None, typer.Option(help="Time at which the balances were known, in UTC.")
    ] = None,
    turnover: Annotated[
        bool, typer.Option("--turnover", help="Show spending and income by month and category instead of balances.")
    ] = False,
    since: Annotated[
        datetime.datetime | None, typer.Option("--from", formats=_DAY, help="First day that counts for --turnover.")
    ] = None,
    until: Annotated[
        datetime.datetime | None, typer.Option("--to", formats=_DAY, help="Last day that counts for --turnover.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the balances of a user's ledger accounts, or with --turnover what was spent and received."""
    if turnover and (effective_at or known_at):
        raise typer.BadParameter("--at and --known-at are for balances, --from and --to for --turnover")
    if not turnover and (since or until):
        raise typer.BadParameter("--from and --to are for --turnover, --at and --known-at for balances")

    async def work(connection: asyncpg.Connection) -> list[Row]:
        async with snapshot(connection):
            number = await user_number(connection, tenant, user)
            if turnover:
                return await ledger_reports.turnover(connection, number, since=_day(since), until=_day(until))
            time = None if known_at is None else known_at.replace(tzinfo=known_at.tzinfo or datetime.UTC)
            return await ledger_reports.balances(connection, number, effective_at=_day(effective_at), known_at=time)

    rows = with_postgres(work)
    columns = TURNOVER if turnover else BALANCES
    cells = (
        [money.display_text(row[name], row["currency"]) if name in _AMOUNTS else row[name] for name in columns]
        for row in rows
    )
    text = table(columns, cells, right=_AMOUNTS) if rows else "The ledger has no rows for this."
    print_result({"turnover" if turnover else "balances": rows}, text, as_json=as_json)


def _day(time: datetime.datetime | None) -> datetime.date | None:
    return None if time is None else time.date()
