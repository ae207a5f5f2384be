"""Partitions of public topics that `tartan republish` fills, and their publisher leaves alone meanwhile.

A fresh database has the table from the first revision: here it is added where it is missing.
"""

from alembic import op
from sqlalchemy.schema import CreateTable

from runtime.postgres import control_tables as control

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply this revision."""
    op.execute(CreateTable(control.held_topics, if_not_exists=True))
