"""The command `tartan reconcile`: compare accounts with their banks now, and start the repairs that fit."""

from typing import Annotated, Any

import typer

from cli.output import connected, count_of, print_json, print_text, run, table
from projections.reconcile import job
from projections.reconcile.repairs import PERSISTS
from projections.reconcile.tie_out import GAP, MISSING_ROWS, NOT_COMPARABLE, TIED_OUT, UNKNOWN
from runtime import settings
from runtime.operators import reconciliations
from runtime.operators.reconciliations import AccountFilter
from schemas.errors import Quarantine

BATCH_MAX = 200
"""Accounts of one snapshot: 100,000 are 500 of them, each about 0.2 s where accounts have 1,000 rows."""
UNEXPLAINED = frozenset({MISSING_ROWS, UNKNOWN})
"""Causes of gaps without an explanation."""
COLUMNS = {
    "Item": "item_id",
    "account": "account_id",
    "cause or reason": "cause",
    **{name: name for name in ("gap", "ledger", "bank", "currency", "repair", "outcome")},
}
"""Field of an account by the heading of its column."""


def reconcile(
    item: Annotated[str | None, typer.Option(help="Check only accounts of this Item, by Plaid's id.")] = None,
    user: Annotated[
        str | None, typer.Option(help="Check only accounts of this user, by the application's own id.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Check only accounts of this tenant.")] = None,
    account: Annotated[str | None, typer.Option(help="Check only this account, by Plaid's id.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each account, and the sums on the last line.")
    ] = False,
) -> None:
    """Compare ledger, transactions and the banks' balances now; name the cause of each gap and start its repair.

    Exit code 1 where a gap is there that nothing explains, or that its repair did not end.
    """
    failed = run(_reconcile(AccountFilter(tenant, user, item, account), as_json=as_json))
    raise typer.Exit(1 if failed else 0)


async def _reconcile(which: AccountFilter, *, as_json: bool) -> bool:
    loaded = settings.load()
    sums: dict[str, Any] = {"accounts": 0, TIED_OUT: 0, NOT_COMPARABLE: {}, "gaps": {}, "persisting": 0}
    failed, shown, last = False, [], None
    async with connected(loaded) as connection:
        while keys := await reconciliations.list_accounts(connection, which, after=last, limit=BATCH_MAX):
            last = keys[-1]
            for result in await job.check(connection, keys, alert_after_s=loaded.gap_alert_after_s):
                account = result.to_json()
                failed |= _add(sums, account)
                if as_json:
                    print_json(account)
                elif account["state"] != TIED_OUT:
                    shown.append(account | {"cause": account["cause"] or account["reason"]})
    if not sums["accounts"] and any(which):
        raise Quarantine("there is no such account")
    if as_json:
        print_json({**sums, "tied_out_or_explained": not failed})
    else:
        print_text(_summary(sums))
        if shown:
            rows = ([account[name] for name in COLUMNS.values()] for account in shown)
            print_text(table(COLUMNS, rows, right=("gap", "ledger", "bank"), ids=("Item", "account")))
    return failed


def _add(sums: dict[str, Any], account: dict[str, Any]) -> bool:
    """Count an account; return True where its gap is not explained, or persists."""
    sums["accounts"] += 1
    if account["state"] == TIED_OUT:
        sums[TIED_OUT] += 1
        return False
    name, reason = ("gaps", account["cause"]) if account["state"] == GAP else (NOT_COMPARABLE, account["reason"])
    sums[name][reason] = sums[name].get(reason, 0) + 1
    persists = account["outcome"] == PERSISTS
    sums["persisting"] += persists
    return persists or account["cause"] in UNEXPLAINED


def _summary(sums: dict[str, Any]) -> str:
    parts = [f"{count_of(sums['accounts'], 'account')}: {sums[TIED_OUT]} tie out"]
    parts += [f"{count} {cause}" for cause, count in sorted(sums["gaps"].items())]
    if sums[NOT_COMPARABLE]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(sums[NOT_COMPARABLE].items()))
        parts.append(f"{sum(sums[NOT_COMPARABLE].values())} cannot be compared ({reasons})")
    return ", ".join(parts) + "."
