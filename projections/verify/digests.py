"""Digests of the database, by schemas.log.digest, and violations of the ledger's invariants. Shell.

All rows are read into memory: for tests, rebuilds of one user, and nightly checks of some.
"""

from typing import Any

import asyncpg

from projections.read.queries import decimal_text
from projections.store.tables import metadata
from projections.verify.invariants import LEDGER
from schemas.log import digest
from schemas.log.digest import AccountState, TransactionState

NOT_REPLAYED = frozenset({("changesets", "events"), ("positions", "last_checksum")})
"""Columns whose bytes may differ after a replay: compressed events (their digest is compared)."""


async def state_rows(connection: asyncpg.Connection) -> tuple[list[TransactionState], list[AccountState]]:
    """Return the bank's final values of the tables: transactions that are not removed, and accounts."""
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
        for row in await connection.fetch("SELECT * FROM transactions WHERE removed_at IS NULL")
    ]
    accounts: list[AccountState] = [
        (row["item_id"], row["account_id"], row["current"], row["available"], row["limit"], row["currency"])
        for row in await connection.fetch("SELECT * FROM accounts")
    ]
    return transactions, accounts


async def state_digest(connection: asyncpg.Connection) -> str:
    """Return the state digest: equal to the bank's own when all changes have arrived."""
    return digest.state_digest(*await state_rows(connection))


async def full_rows(connection: asyncpg.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows that any replay of the same log gives again, by table, in the order of the primary keys."""
    tables: dict[str, list[tuple[Any, ...]]] = {}
    for table in metadata.sorted_tables:
        columns = [name for name in table.columns.keys() if (table.name, name) not in NOT_REPLAYED]  # noqa: SIM118
        chosen = ", ".join(f'"{name}"' for name in columns)
        order = ", ".join(f'"{name}"' for name in table.primary_key.columns.keys())  # noqa: SIM118
        rows = await connection.fetch(f"SELECT {chosen} FROM {table.name} ORDER BY {order}")
        tables[table.name] = [
            tuple(value.hex() if isinstance(value, bytes) else value for value in row.values()) for row in rows
        ]
    return tables


async def full_digest(connection: asyncpg.Connection) -> str:
    """Return the full digest: live = any replay of the same log, however it was cut into batches."""
    return digest.full_digest(**await full_rows(connection))


async def ledger_problems(connection: asyncpg.Connection) -> list[str]:
    """Return the violations of the ledger's invariants as texts."""
    problems: list[str] = []
    for invariant in LEDGER:
        row = await connection.fetchrow(invariant.query)
        assert row is not None
        problems += [f"{invariant.name}: {subject}" for subject in row["examples"]]
    return problems
