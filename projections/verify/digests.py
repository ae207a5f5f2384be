"""The oracle over the database: the state and full digests of schemas.log.digest, and what is wrong with the ledger.

All rows are read into memory: for tests, rebuilds of one user, and nightly checks of some.
"""

from typing import Any

import asyncpg

from projections.read.queries import decimal_text
from projections.store.tables import metadata
from projections.verify.invariants import LEDGER
from schemas.log import digest
from schemas.log.digest import AccountState, TransactionState

OF_NO_REPLAY = frozenset({("changesets", "events"), ("positions", "last_checksum")})
"""Columns of which a replay need not give the same bytes: compressed events (their digest is there)."""


async def state_rows(connection: asyncpg.Connection) -> tuple[list[TransactionState], list[AccountState]]:
    """The bank's final values as the tables have them: what is not removed, and the accounts."""
    transactions: list[TransactionState] = [
        (
            row["item_id"],
            row["transaction_id"],
            row["account_id"],
            decimal_text(row["amount_value"], row["amount_scale"]) or "",
            row["currency"],
            row["date"].isoformat(),
            row["pending"],
            row["name"],
            row["merchant_name"],
            row["category_detailed"],
        )
        for row in await connection.fetch(_TRANSACTIONS)
    ]
    accounts: list[AccountState] = [
        (row["item_id"], row["account_id"], row["current"], row["available"], row["limit"], row["currency"])
        for row in await connection.fetch(_ACCOUNTS)
    ]
    return transactions, accounts


async def state_digest(connection: asyncpg.Connection) -> str:
    """The state digest: equal to that of the bank's own truth when all of it has arrived."""
    transactions, accounts = await state_rows(connection)
    return digest.state_digest(transactions, accounts)


async def full_rows(connection: asyncpg.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that any replay of the same log gives again, by table, in the order of the primary keys."""
    tables: dict[str, list[tuple[Any, ...]]] = {}
    for table in metadata.sorted_tables:
        columns = [name for name in table.columns.keys() if (table.name, name) not in OF_NO_REPLAY]  # noqa: SIM118
        chosen = ", ".join(f'"{name}"' for name in columns)
        order = ", ".join(f'"{name}"' for name in table.primary_key.columns.keys())  # noqa: SIM118
        rows = await connection.fetch(f"SELECT {chosen} FROM {table.name} ORDER BY {order}")
        tables[table.name] = [tuple(_plain(value) for value in row.values()) for row in rows]
    return tables


async def full_digest(connection: asyncpg.Connection) -> str:
    """The full digest: live = any replay of the same log, however it was cut into batches."""
    return digest.full_digest(**await full_rows(connection))


async def ledger_problems(connection: asyncpg.Connection) -> list[str]:
    """What is wrong with the ledger, in payload; empty where every invariant of it holds."""
    problems: list[str] = []
    for invariant in LEDGER:
        row = await connection.fetchrow(invariant.query)
        assert row is not None
        problems += [f"{invariant.name}: {what}" for what in row["examples"]]
    return problems


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


_TRANSACTIONS = "SELECT * FROM transactions WHERE removed_at IS NULL"
_ACCOUNTS = "SELECT * FROM accounts"
