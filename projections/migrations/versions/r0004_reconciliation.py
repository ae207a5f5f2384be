"""The last check of each account against its bank, and the discrepancies that checks found.

A fresh database has both from the first revision: here they are added where they are missing.
"""

from alembic import op
from sqlalchemy.schema import CreateIndex, CreateTable

from runtime import tables as control

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply this revision."""
    for table in (control.reconciliations, control.discrepancies):
        op.execute(CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            op.execute(CreateIndex(index, if_not_exists=True))
