"""Reconciliations: return an account's last check and its discrepancies, and check it now."""

import asyncpg

from gateway.http.database import connected, snapshot
from gateway.http.idempotency import Answer
from gateway.http.problems import Fault, invalid, not_found
from gateway.http.requests import Call, ok
from projections.read import reconciliation
from runtime.operators import reconciliations
from runtime.operators.reconciliations import AccountFilter, Key
from runtime.settings import Settings

LIMIT_DEFAULT = 50


class Reconciliations:
    """Handlers that compare accounts with their banks' balances."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._alert_after_s = settings.gap_alert_after_s

    async def list_reconciliations(self, call: Call) -> Answer:
        """Return the last check of an account and its discrepancies, newest first."""
        async with snapshot(self._pool) as connection:
            return await _answer(connection, await _account(connection, call), limit=call.values["limit"])

    async def reconcile_account(self, call: Call) -> Answer:
        """Check an account now and start a repair that fits."""
        async with connected(self._pool) as connection:
            key = await _account(connection, call)
            await reconciliation.check(connection, [key], alert_after_s=self._alert_after_s)
            return await _answer(connection, key, limit=None)


async def _account(connection: asyncpg.Connection, call: Call) -> Key:
    """Return the tenant's account with this id.

    Raises: Problem 404; Problem 400, where several Items have it and the call names none.
    """
    which = AccountFilter(tenant=call.tenant, item_id=call.values["item_id"], account_id=call.values["account_id"])
    accounts = await reconciliations.list_accounts(connection, which, limit=2)
    if not accounts:
        raise not_found("account")
    if len(accounts) > 1:
        raise invalid(Fault("item_id", "is missing: several Items have an account with this id"))
    return accounts[0]


async def _answer(connection: asyncpg.Connection, key: Key, *, limit: int | None) -> Answer:
    last = await reconciliations.last_check(connection, key)
    discrepancies = await reconciliations.history(connection, key, limit=limit or LIMIT_DEFAULT)
    return ok({**key._asdict(), "last": last, "discrepancies": discrepancies})
