"""The oracle over the database: the state and full digests of schemas.digest, and what is wrong with the ledger.

All rows are read into memory: for tests, rebuilds of one user, and nightly checks of some.
"""

from typing import Any

import asyncpg

from projections.queries import decimal_text
from projections.tables import SCHEMA, metadata
from schemas import digest
from schemas.digest import AccountState, TransactionState

_OF_NO_REPLAY = frozenset({("changesets", "events"), ("positions", "last_checksum")})
"""Columns of which a replay need not give the same bytes: compressed events (their digest is there)."""


async def state_rows(connection: asyncpg.Connection) -> tuple[list[TransactionState], list[AccountState]]:
    """The bank's final values as the tables have them: what is not removed, and the accounts."""
    transactions: list[TransactionState] = [
        (
            row["item_id"], row["transaction_id"], row["account_id"],
            decimal_text(row["amount_value"], row["amount_scale"]) or "", row["currency"], row["date"].isoformat(),
            row["pending"], row["name"], row["merchant_name"], row["category_detailed"],
        )
        for row in await connection.fetch(_TRANSACTIONS)
    ]  # fmt: skip
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
        columns = [name for name in table.columns.keys() if (table.name, name) not in _OF_NO_REPLAY]  # noqa: SIM118
        chosen = ", ".join(f'"{name}"' for name in columns)
        order = ", ".join(f'"{name}"' for name in table.primary_key.columns.keys())  # noqa: SIM118
        rows = await connection.fetch(f"SELECT {chosen} FROM {table.fullname} ORDER BY {order}")
        tables[table.name] = [tuple(_plain(value) for value in row.values()) for row in rows]
    return tables


async def full_digest(connection: asyncpg.Connection) -> str:
    """The full digest: live = any replay of the same log, however it was cut into batches."""
    return digest.full_digest(**await full_rows(connection))


async def ledger_problems(connection: asyncpg.Connection) -> list[str]:
    """What is wrong with the ledger, in words; empty where it balances and each balance is the sum of its transfers."""
    problems = [
        f"{row['currency']}: debits {row['debits']} and credits {row['credits']} differ"
        for row in await connection.fetch(_UNBALANCED)
    ]
    problems += [
        f"account {row['account'].hex()} {row['layer']}: balance and transfers differ by {row['gap']}"
        for row in await connection.fetch(_UNEXPLAINED)
    ]
    problems += [
        f"transaction {row['own_id'].hex()}: {row['transfers']} transfers are named, {row['found']} are there"
        for row in await connection.fetch(_MISCOUNTED)
    ]
    return problems


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


_TRANSACTIONS = f"SELECT * FROM {SCHEMA}.transactions WHERE removed_at IS NULL"
_ACCOUNTS = f"SELECT * FROM {SCHEMA}.accounts"

_UNBALANCED = f"""
SELECT a.currency, sum(b.debits) AS debits, sum(b.credits) AS credits
  FROM {SCHEMA}.ledger_balances b JOIN {SCHEMA}.ledger_accounts a ON a.id = b.account
 GROUP BY a.currency HAVING sum(b.debits) <> sum(b.credits)"""

_UNEXPLAINED = f"""
WITH moved AS (
    SELECT account, layer, sum(debits) AS debits, sum(credits) AS credits FROM (
        SELECT debit AS account, layer, amount AS debits, 0 AS credits FROM {SCHEMA}.ledger_transfers
         UNION ALL
        SELECT credit, layer, 0, amount FROM {SCHEMA}.ledger_transfers) AS sides
     GROUP BY account, layer)
SELECT account, layer, abs(coalesce(b.debits, 0) - coalesce(m.debits, 0))
                     + abs(coalesce(b.credits, 0) - coalesce(m.credits, 0)) AS gap
  FROM {SCHEMA}.ledger_balances b FULL JOIN moved m USING (account, layer)
 WHERE coalesce(b.debits, 0) <> coalesce(m.debits, 0) OR coalesce(b.credits, 0) <> coalesce(m.credits, 0)"""

_MISCOUNTED = f"""
SELECT t.own_id, t.transfers, count(l.number) AS found
  FROM {SCHEMA}.transactions t LEFT JOIN {SCHEMA}.ledger_transfers l USING (own_id)
 GROUP BY t.own_id HAVING t.transfers <> count(l.number)"""
