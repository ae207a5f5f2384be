"""Build the statements that write a batch from the tables' definitions.

A small batch is one statement: a data-modifying CTE for each table. One round trip instead of nine halves Postgres's
work on a live update.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from sqlalchemy import BigInteger, Column, Integer, MetaData, Table, Text
from sqlalchemy.dialects import postgresql

from projections.store import tables
from projections.store.rows import TRANSACTION_COLUMNS
from runtime.postgres.pool import CONTROL_SCHEMA

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]

ONE, MANY = "${number}::{kind}", "${number}::{kind}[]"
"""A parameter of a single row, and of many: the columns' arrays. One row in arrays costs both sides twice as much."""


class Target(NamedTuple):
    """One way of writing one table: `sql` reads the `columns` of u from {source}."""

    name: str
    table: Table
    columns: tuple[str, ...]
    sql: str

    def statement(self, first: int, form: str) -> str:
        """Return the statement whose parameters have the numbers from `first` on."""
        types = [self.table.columns[name].type.compile(_DIALECT) for name in self.columns]
        parameters = ", ".join(form.format(number=number, kind=kind) for number, kind in enumerate(types, first))
        source = f"unnest({parameters})" if form == MANY else f"(VALUES ({parameters}))"
        # The session's search_path leads to the projection's tables.
        schema = "" if self.table.metadata is tables.metadata else f"{self.table.schema}."
        return self.sql.format(
            source=f"{source} AS u({listed(self.columns)})",
            columns=listed(self.columns),
            changes=", ".join(f'"{name}" = excluded."{name}"' for name in self.columns),
            key=listed(tuple(self.table.primary_key.columns.keys())),
            table=f'{schema}"{self.table.name}"',
        )


def listed(columns: Sequence[str]) -> str:
    """Return column names, quoted, separated by commas."""
    return ", ".join(f'"{name}"' for name in columns)


_INSERT = "INSERT INTO {table} ({columns}) SELECT * FROM {source}"
_INSERT_ONCE = _INSERT + " ON CONFLICT DO NOTHING"
_UPSERT = _INSERT + " ON CONFLICT ({key}) DO UPDATE SET {changes}"


def _all_columns(name: str, table: Table, sql: str) -> Target:
    return Target(name, table, tables.column_names(table), sql)


CHANGED = "changed_transactions"
"""Name of the staging table for changed transactions, in each connection's temporary schema."""

_UPDATED = ", ".join(
    f'"{name}" = u."{name}"' for name in TRANSACTION_COLUMNS if name not in ("own_id", "user_number", "first_changeset")
)

UPDATE_STAGED = f"UPDATE transactions t SET {_UPDATED} FROM {CHANGED} u WHERE t.own_id = u.own_id"
STAGING = f"""
CREATE TEMPORARY TABLE IF NOT EXISTS {CHANGED} ON COMMIT DELETE ROWS
    AS SELECT {listed(TRANSACTION_COLUMNS)} FROM transactions WITH NO DATA"""

NEW_TRANSACTIONS = Target("new", tables.transactions, TRANSACTION_COLUMNS, _INSERT)
CHANGED_TRANSACTIONS = Target(
    "changed",
    tables.transactions,
    TRANSACTION_COLUMNS,
    f"UPDATE {{table}} t SET {_UPDATED} FROM {{source}} WHERE t.own_id = u.own_id",
)
TRANSFERS = _all_columns("transfers", tables.ledger_transfers, _INSERT)
LEDGER_ACCOUNTS = _all_columns("ledger_accounts", tables.ledger_accounts, _INSERT_ONCE)
LEDGER_BALANCES = _all_columns(
    "ledger_balances",
    tables.ledger_balances,
    "INSERT INTO {table} AS b ({columns}) SELECT * FROM {source} ON CONFLICT ({key}) DO UPDATE"
    " SET debits = b.debits + excluded.debits, credits = b.credits + excluded.credits",
)
ACCOUNTS = _all_columns("accounts", tables.accounts, _UPSERT)
ITEMS = _all_columns("items", tables.items, _UPSERT)
CHANGESETS = _all_columns("changesets", tables.changesets, _INSERT)
VERSIONS = _all_columns("versions", tables.transaction_versions, _INSERT)
ACCOUNT_VERSIONS = _all_columns("account_versions", tables.account_versions, _INSERT)
MATCHES = _all_columns("matches", tables.transaction_matches, _UPSERT)
REVIEWS = _all_columns("reviews", tables.reviews, _UPSERT)
POSITIONS = _all_columns("positions", tables.positions, _UPSERT)
NEW_CHUNKS = _all_columns("new_chunks", tables.chunks, _INSERT_ONCE)
OLD_CHUNKS = Target(
    "old_chunks",
    tables.chunks,
    ("item_id", "id"),
    "DELETE FROM {table} p USING {source} WHERE p.item_id = u.item_id AND p.id = u.id",
)
WITHHELD = _all_columns("withheld", tables.withheld, _INSERT_ONCE)
FREED = Target(
    "freed",
    tables.withheld,
    ("item_id", "partition", "source_offset"),
    "DELETE FROM {table} w USING {source}"
    " WHERE w.item_id = u.item_id AND w.partition = u.partition AND w.source_offset = u.source_offset",
)
_CONTROL = MetaData(schema=CONTROL_SCHEMA)
_quarantines = Table(
    "quarantines",
    _CONTROL,
    *(Column(name, Text) for name in ("item_id", "reason", "reader")),
    *(Column(name, BigInteger) for name in ("first_offset", "redrive_offset")),
    Column("partition", Integer),
)
_checkpoints = Table("published_checkpoints", _CONTROL, Column("partition", Integer), Column("published", BigInteger))

# By the scheduler's clock: the limit on the rate of quarantines counts in its time.
QUARANTINES = Target(
    "quarantines",
    _quarantines,
    ("item_id", "first_offset", "partition", "reason", "reader", "redrive_offset"),
    "INSERT INTO {table} ({columns}, quarantined_at) SELECT *, tartan.clock() FROM {source} ON CONFLICT DO NOTHING",
)
ENDED = Target(
    "ended",
    _quarantines,
    ("item_id", "first_offset", "reader", "redrive_offset"),
    "UPDATE {table} k SET redrive_offset = u.redrive_offset FROM {source}"
    " WHERE k.item_id = u.item_id AND k.first_offset = u.first_offset AND k.reader = u.reader"
    " AND k.redrive_offset IS NULL",
)
CHECKPOINTS = Target(
    "checkpoints",
    _checkpoints,
    ("partition", "published"),
    "INSERT INTO {table} AS f ({columns}) SELECT * FROM {source} ON CONFLICT (partition) DO UPDATE"
    " SET published = greatest(f.published, excluded.published)",
)


@cache
def combined(parts: tuple[tuple[Target, str], ...]) -> str:
    """Return one statement that writes several tables, each in its form; its parameters are the columns in order."""
    ctes, first = [], 1
    for target, form in parts:
        ctes.append(f"w_{target.name} AS ({target.statement(first, form)})")
        first += len(target.columns)
    return "WITH " + ", ".join(ctes) + " SELECT"
