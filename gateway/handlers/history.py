"""History: return earlier states of transactions and accounts, and the causes of a transaction."""

import asyncpg

from gateway.handlers.ownership import transaction_owner, user_of
from gateway.handlers.reads import LIMIT_DEFAULT, transaction_filter
from gateway.http import cursors
from gateway.http.database import snapshot
from gateway.http.idempotency import Answer
from gateway.http.problems import not_found
from gateway.http.requests import Call, ok
from projections.read import as_of, explain, history


class History:
    """Handlers of earlier states."""

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def list_transactions_as_of(self, call: Call) -> Answer:
        """Return a page of a user's transactions as they were known at a time."""
        values = call.values
        known_at, effective_at = values["as_of"], values["effective_at"]
        which = transaction_filter(values)
        scope = f"as of {known_at} {effective_at} {which}"
        after = cursors.read(values["cursor"], scope) if values["cursor"] is not None else None
        limit = values["limit"] or LIMIT_DEFAULT
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            page = await as_of.transactions(connection, user, known_at, effective_at, which, limit=limit, after=after)
        next_cursor = cursors.write(page.next, scope) if page.next else None
        return ok({"transactions": page.rows, "next_cursor": next_cursor})

    async def list_accounts_as_of(self, call: Call) -> Answer:
        """Return a user's accounts with the balances that were reported until a time."""
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            return ok({"accounts": await as_of.accounts(connection, user, call.values["as_of"])})

    async def transaction_history(self, call: Call) -> Answer:
        """Return a page of the versions of a transaction."""
        own_id: bytes = call.values["transaction_id"]
        scope, cursor = f"history of {own_id.hex()}", call.values["cursor"]
        before = None if cursor is None else cursors.read_number(cursor, scope)
        limit = call.values["limit"] or LIMIT_DEFAULT
        async with snapshot(self._pool) as connection:
            user = await transaction_owner(connection, call)
            page = None
            if user is not None:
                page = await history.versions(connection, user, own_id, limit=limit, before=before)
        if page is None:
            raise not_found("transaction")
        next_cursor = None if page.next is None else cursors.write_number(page.next, scope)
        return ok({"versions": page.rows, "next_cursor": next_cursor})

    async def explain_transaction(self, call: Call) -> Answer:
        """Return versions, transfers, links and changesets behind a transaction."""
        async with snapshot(self._pool) as connection:
            user = await transaction_owner(connection, call)
            explanation = (
                None if user is None else await explain.transaction(connection, user, call.values["transaction_id"])
            )
        if explanation is None:
            raise not_found("transaction")
        return ok(explanation)
