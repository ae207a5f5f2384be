"""The command `tartan reconcile`: compare accounts with their banks now, and start the repairs that fit."""

from typing import Annotated, Any

import asyncpg
import typer
from rich.table import Table

from cli.output import connected, console_of_lines, finish, say
from projections.reconcile import job
from projections.reconcile.repairs import PERSISTS
from projections.reconcile.tie_out import GAP, MISSING_ROWS, NOT_COMPARABLE, TIED_OUT, UNKNOWN
from runtime import settings
from runtime.operators import reconciliations
from runtime.operators.reconciliations import AccountFilter
from schemas.errors import Quarantine

AT_ONCE = 200
"""Accounts of one snapshot: 100,000 are 500 of them, each about 0.2 s where accounts have 1,000 rows."""
UNEXPLAINED = frozenset({MISSING_ROWS, UNKNOWN})
"""Causes that say that nothing known explains the gap."""

Json = Annotated[bool, typer.Option("--json", help="One JSON object an account; the last line is one with the sums.")]


def reconcile(
    item: Annotated[str | None, typer.Option(help="Accounts of this Item only.")] = None,
    user: Annotated[str | None, typer.Option(help="Of this user only: the application's own id.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant only.")] = None,
    account: Annotated[str | None, typer.Option(help="This account only: Plaid's id.")] = None,
    as_json: Json = False,
) -> None:
    """Compare ledger, transactions and the banks' balances now; name the cause of each gap and start its repair.

    Exit code 1 where a gap is there that nothing explains, or that its repair did not end.
    """
    failed = finish(_reconcile(AccountFilter(tenant, user, item, account), as_json=as_json))
    raise typer.Exit(1 if failed else 0)


async def _reconcile(which: AccountFilter, *, as_json: bool) -> bool:
    loaded = settings.load()
    sums: dict[str, Any] = {"accounts": 0, TIED_OUT: 0, NOT_COMPARABLE: {}, "gaps": {}, "persisting": 0}
    failed, shown, last = False, [], None
    async with connected(loaded) as connection:
        while keys := await reconciliations.list_accounts(connection, which, after=last, limit=AT_ONCE):
            last = keys[-1]
            for one in await _checked(connection, keys, alert_after_s=loaded.gap_alert_after_s):
                failed |= _add(sums, one)
                if as_json:
                    say(console_of_lines(), one)
                elif one["state"] != TIED_OUT:
                    shown.append(one)
    if not sums["accounts"] and any(which):
        raise Quarantine("there is no such account")
    say(console_of_lines(), {**sums, "tied_out_or_explained": not failed} if as_json else _summary(sums))
    if shown and not as_json:
        say(console_of_lines(), _table(shown))
    return failed


async def _checked(
    connection: asyncpg.Connection, keys: list[reconciliations.Key], *, alert_after_s: float
) -> list[dict[str, Any]]:
    results = await job.check(connection, keys, alert_after_s=alert_after_s)
    return [result.to_json() for result in results]


def _add(sums: dict[str, Any], one: dict[str, Any]) -> bool:
    """Count an account; True where its gap is not explained, or persists."""
    sums["accounts"] += 1
    if one["state"] == TIED_OUT:
        sums[TIED_OUT] += 1
        return False
    name, why = ("gaps", one["cause"]) if one["state"] == GAP else (NOT_COMPARABLE, one["reason"])
    sums[name][why] = sums[name].get(why, 0) + 1
    persists = one["outcome"] == PERSISTS
    sums["persisting"] += persists
    return persists or one["cause"] in UNEXPLAINED


def _summary(sums: dict[str, Any]) -> str:
    accounts = "1 account" if sums["accounts"] == 1 else f"{sums['accounts']} accounts"
    parts = [f"{accounts}: {sums[TIED_OUT]} tie out"]
    parts += [f"{count} {cause}" for cause, count in sorted(sums["gaps"].items())]
    if sums[NOT_COMPARABLE]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(sums[NOT_COMPARABLE].items()))
        parts.append(f"{sum(sums[NOT_COMPARABLE].values())} cannot be compared ({reasons})")
    return ", ".join(parts) + "."


def _table(shown: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("Item", "account"):
        table.add_column(name, no_wrap=True)
    for name in ("cause or reason", "gap", "ledger", "bank", "currency", "repair", "outcome"):
        table.add_column(name, justify="right" if name in ("gap", "ledger", "bank") else "left")
    for one in shown:
        told = (
            one["item_id"],
            one["account_id"],
            one["cause"] or one["reason"],
            one["gap"],
            one["ledger"],
            one["bank"],
            one["currency"],
            one["repair"],
            one["outcome"],
        )
        table.add_row(*("" if value is None else value for value in told))
    return table
