"""The statements that write a batch, made from the tables' definitions.

A small batch is one statement: a data-modifying CTE a table. One round trip instead of nine
halves Postgres's work on a live update.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from sqlalchemy import MetaData
from sqlalchemy.dialects import postgresql

from projections.store import rows, tables
from runtime.postgres import control_tables as control

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


class Target(NamedTuple):
    """One way of writing one table: `sql` says how, reading the `columns` of u from {source}."""

    name: str
    metadata: MetaData
    table: str
    columns: tuple[str, ...]
    sql: str

    def types(self) -> list[str]:
        """The columns' types."""
        declared = self.metadata.tables[f"{self.metadata.schema}.{self.table}"].columns
        return [declared[name].type.compile(_DIALECT) for name in self.columns]

    def statement(self, first: int, form: str) -> str:
        """The part of a statement whose parameters begin at number `first`."""
        parameters = ", ".join(form.format(number=first + at, kind=kind) for at, kind in enumerate(self.types()))
        source = f"unnest({parameters})" if form == MANY else f"(VALUES ({parameters}))"
        return self.sql.format(
            source=f"{source} AS u({listed(self.columns)})",
            columns=listed(self.columns),
            changes=_changes(self.columns),
            table=self._table(),
        )

    def _table(self) -> str:
        """A projection's table is the one that the session's search_path leads to."""
        if self.metadata is tables.metadata:
            return f'"{self.table}"'
        return f'{self.metadata.schema}."{self.table}"'


ONE, MANY = "${number}::{kind}", "${number}::{kind}[]"
"""A parameter of a single row, and of many: the columns' arrays. One row in arrays costs both sides twice as much."""


def listed(columns: Sequence[str], prefix: str = "") -> str:
    """Column names, quoted, separated by commas."""
    return ", ".join(f'{prefix}"{name}"' for name in columns)


def _changes(columns: Sequence[str]) -> str:
    return ", ".join(f'"{name}" = excluded."{name}"' for name in columns)


_INSERT = "INSERT INTO {table} ({columns}) SELECT * FROM {source}"
_INSERT_ONCE = _INSERT + " ON CONFLICT DO NOTHING"

CHANGED = "changed_transactions"
"""Name of the staging table for changed transactions, in each connection's temporary schema."""

_UPDATE_COLUMNS = tuple(
    name for name in rows.TRANSACTION_COLUMNS if name not in ("own_id", "user_number", "first_changeset")
)
_UPDATED = ", ".join(f'"{name}" = u."{name}"' for name in _UPDATE_COLUMNS)

UPDATE_STAGED = f"UPDATE transactions t SET {_UPDATED} FROM {CHANGED} u WHERE t.own_id = u.own_id"
STAGING = f"""
CREATE TEMPORARY TABLE IF NOT EXISTS {CHANGED} ON COMMIT DELETE ROWS
    AS SELECT {listed(rows.TRANSACTION_COLUMNS)} FROM transactions WITH NO DATA"""

INSERT_TRANSACTIONS = Target("new", tables.metadata, "transactions", rows.TRANSACTION_COLUMNS, _INSERT)
UPDATE_TRANSACTIONS = Target(
    "changed",
    tables.metadata,
    "transactions",
    rows.TRANSACTION_COLUMNS,
    f"UPDATE {{table}} t SET {_UPDATED} FROM {{source}} WHERE t.own_id = u.own_id",
)
INSERT_TRANSFERS = Target("transfers", tables.metadata, "ledger_transfers", rows.TRANSFER_COLUMNS, _INSERT)
LEDGER_ACCOUNTS = Target(
    "ledger_accounts", tables.metadata, "ledger_accounts", rows.LEDGER_ACCOUNT_COLUMNS, _INSERT_ONCE
)
LEDGER_BALANCES = Target(
    "ledger_balances",
    tables.metadata,
    "ledger_balances",
    rows.LEDGER_BALANCE_COLUMNS,
    "INSERT INTO {table} AS b ({columns}) SELECT * FROM {source} ON CONFLICT (account, layer) DO UPDATE"
    " SET debits = b.debits + excluded.debits, credits = b.credits + excluded.credits",
)
ACCOUNTS = Target(
    "accounts",
    tables.metadata,
    "accounts",
    rows.ACCOUNT_COLUMNS,
    _INSERT + " ON CONFLICT (item_id, account_id) DO UPDATE SET {changes}",
)
ITEMS = Target(
    "items", tables.metadata, "items", rows.ITEM_COLUMNS, _INSERT + " ON CONFLICT (item_id) DO UPDATE SET {changes}"
)
CHANGESETS = Target("changesets", tables.metadata, "changesets", rows.CHANGESET_COLUMNS, _INSERT)
VERSIONS = Target("versions", tables.metadata, "transaction_versions", rows.VERSION_COLUMNS, _INSERT)
ACCOUNT_VERSIONS = Target(
    "account_versions", tables.metadata, "account_versions", rows.ACCOUNT_VERSION_COLUMNS, _INSERT
)
LINKS = Target(
    "links",
    tables.metadata,
    "transaction_matches",
    rows.LINK_COLUMNS,
    _INSERT + " ON CONFLICT (item_id, transaction_id) DO UPDATE SET {changes}",
)
REVIEWS = Target(
    "reviews", tables.metadata, "reviews", rows.REVIEW_COLUMNS, _INSERT + " ON CONFLICT (id) DO UPDATE SET {changes}"
)
NEW_CHUNKS = Target("new_chunks", tables.metadata, "chunks", ("item_id", "id", "source_offset", "value"), _INSERT_ONCE)
OLD_CHUNKS = Target(
    "old_chunks",
    tables.metadata,
    "chunks",
    ("item_id", "id"),
    "DELETE FROM {table} p USING {source} WHERE p.item_id = u.item_id AND p.id = u.id",
)
WITHHELD = Target(
    "withheld", tables.metadata, "withheld", ("item_id", "partition", "source_offset", "value"), _INSERT_ONCE
)
FREED = Target(
    "freed",
    tables.metadata,
    "withheld",
    ("item_id", "partition", "source_offset"),
    "DELETE FROM {table} w USING {source}"
    " WHERE w.item_id = u.item_id AND w.partition = u.partition AND w.source_offset = u.source_offset",
)
# By the scheduler's clock: the rate that stops a reader is counted in its time.
QUARANTINES = Target(
    "quarantines",
    control.metadata,
    "quarantines",
    ("item_id", "first_offset", "partition", "reason", "reader", "redrive_offset"),
    "INSERT INTO {table} ({columns}, quarantined_at) SELECT *, tartan.clock() FROM {source} ON CONFLICT DO NOTHING",
)
ENDED = Target(
    "ended",
    control.metadata,
    "quarantines",
    ("item_id", "first_offset", "reader", "redrive_offset"),
    "UPDATE {table} k SET redrive_offset = u.redrive_offset FROM {source}"
    " WHERE k.item_id = u.item_id AND k.first_offset = u.first_offset AND k.reader = u.reader"
    " AND k.redrive_offset IS NULL",
)
POSITIONS = Target(
    "positions",
    tables.metadata,
    "positions",
    ("partition", "position", "last_checksum", "known_at"),
    _INSERT + " ON CONFLICT (partition) DO UPDATE SET {changes}",
)
CHECKPOINTS = Target(
    "checkpoints",
    control.metadata,
    "published_checkpoints",
    ("partition", "published"),
    "INSERT INTO {table} AS f ({columns}) SELECT * FROM {source} ON CONFLICT (partition) DO UPDATE"
    " SET published = greatest(f.published, excluded.published)",
)


@cache
def combined(parts: tuple[tuple[Target, str], ...]) -> str:
    """One statement that writes several tables, each in its form; the parameters are the targets' columns in order."""
    written, first = [], 1
    for target, form in parts:
        written.append(f"w_{target.name} AS ({target.statement(first, form)})")
        first += len(target.columns)
    return "WITH " + ", ".join(written) + " SELECT"
