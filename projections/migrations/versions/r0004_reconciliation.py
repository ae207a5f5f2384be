"""The last check of each account against its bank, the discrepancies that checks found, and accounts by Plaid's id.

A fresh database has all of it from the first revision: here it is added where it is missing.
"""

from alembic import op
from sqlalchemy.schema import CreateIndex, CreateTable

from projections.store import tables
from runtime.postgres import control_tables as control

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply this revision."""
    for table in (control.reconciliations, control.discrepancies):
        op.execute(CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            op.execute(CreateIndex(index, if_not_exists=True))
    for index in tables.accounts.indexes:
        if index.name == "accounts_account":
            op.execute(CreateIndex(index, if_not_exists=True))
