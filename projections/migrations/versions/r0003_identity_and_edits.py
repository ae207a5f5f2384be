"""What users said, versions of transactions and accounts, links between ids, reviews, and opening balances.

A fresh database has all of this from the first revision: here it is added where it is missing.
"""

from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from projections.store import tables

revision = "0003"
down_revision = "0002"

_NEW_TABLES = (tables.transaction_versions, tables.account_versions, tables.identity_links, tables.reviews)
_NEW_COLUMNS = {
    tables.items: ("has_twins", "waiting_edits"),
    tables.accounts: (
        "opened",
        "opening_transfers",
        "continues_item",
        "continues_account",
        "continued_by_item",
        "continued_by_account",
    ),
    tables.transactions: ("legs", "review"),
}


def upgrade() -> None:
    """Apply this revision."""
    for table in _NEW_TABLES:
        op.execute(CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            op.execute(CreateIndex(index, if_not_exists=True))
    for table, names in _NEW_COLUMNS.items():
        for name in names:
            spec = CreateColumn(table.c[name]).compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
            op.execute(f"ALTER TABLE {table.fullname} ADD COLUMN IF NOT EXISTS {spec}")
    # What was removed before has no transfer that counts.
    op.execute(f"UPDATE {tables.transactions.fullname} SET legs = 0 WHERE removed_at IS NOT NULL AND legs = 1")
