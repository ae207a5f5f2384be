"""What was known at a time, and why: versions of a transaction, and what was behind them."""

import asyncpg

from gateway.handlers import item_control
from gateway.handlers.reads import LIMIT_DEFAULT, user_of
from gateway.http import cursors
from gateway.http.database import snapshot
from gateway.http.idempotency import Answer
from gateway.http.problems import not_found
from gateway.http.requests import Call, ok
from projections.read import as_of, explain, history
from projections.read.queries import TransactionFilter


class History:
    """Handlers that look back."""

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def list_transactions_as_of(self, call: Call) -> Answer:
        """A page of a user's transactions as they were known at a time."""
        values = call.values
        known_at, effective_at = values["as_of"], values["effective_at"]
        which = TransactionFilter(
            item_id=values["item_id"],
            account_id=values["account_id"],
            since=values["from"],
            pending=values["pending"],
            in_review=values["in_review"] or False,
        )
        scope = f"as of {known_at} {effective_at} {which}"
        after = cursors.read(values["cursor"], scope) if values["cursor"] is not None else None
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            page = await as_of.transactions(
                connection, user, known_at, effective_at, which, limit=values["limit"] or LIMIT_DEFAULT, after=after
            )
        following = cursors.write(page.next, scope) if page.next else None
        return ok({"transactions": page.rows, "next_cursor": following})

    async def list_accounts_as_of(self, call: Call) -> Answer:
        """A user's accounts with what had been reported of them at a time."""
        async with snapshot(self._pool) as connection:
            user = await user_of(connection, call)
            return ok({"accounts": await as_of.accounts(connection, user, call.values["as_of"])})

    async def transaction_history(self, call: Call) -> Answer:
        """A page of the versions of a transaction."""
        own_id: bytes = call.values["transaction_id"]
        scope, cursor = f"history of {own_id.hex()}", call.values["cursor"]
        before = None if cursor is None else cursors.read_number(cursor, scope)
        limit = call.values["limit"] or LIMIT_DEFAULT
        async with snapshot(self._pool) as connection:
            user = await item_control.owner_of(connection, call.tenant, own_id)
            page = None
            if user is not None:
                page = await history.versions(connection, user, own_id, limit=limit, before=before)
        if page is None:
            raise not_found("transaction")
        following = None if page.next is None else cursors.write_number(page.next, scope)
        return ok({"versions": page.rows, "next_cursor": following})

    async def explain_transaction(self, call: Call) -> Answer:
        """All that led to a transaction as it is."""
        own_id: bytes = call.values["transaction_id"]
        async with snapshot(self._pool) as connection:
            user = await item_control.owner_of(connection, call.tenant, own_id)
            told = None if user is None else await explain.transaction(connection, user, own_id)
        if told is None:
            raise not_found("transaction")
        return ok(told)
