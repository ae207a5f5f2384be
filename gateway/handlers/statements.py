"""Statements: return a user's ledger balances at a time and the turnover by month."""

import asyncpg

from gateway.handlers.ownership import user_of
from gateway.http.database import snapshot
from gateway.http.idempotency import Answer
from gateway.http.requests import Call, ok
from projections.read import ledger_reports


class Statements:
    """Handlers of ledger reports."""

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def ledger_balances(self, call: Call) -> Answer:
        """Return the balance of each ledger account of a user."""
        values = call.values
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            rows = await ledger_reports.balances(
                connection, user, effective_at=values["at"], known_at=values["known_at"]
            )
        return ok({"balances": rows})

    async def ledger_turnover(self, call: Call) -> Answer:
        """Return a user's spending and income, by month, currency and category."""
        values = call.values
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            rows = await ledger_reports.turnover(connection, user, since=values["from"], until=values["to"])
        return ok({"turnover": rows})
