"""Ids that a schema registry gave, kept so that its outage stops no publisher.

The first revision creates the control tables as they are today: here it is added where it is missing.
"""

from alembic import op
from sqlalchemy.schema import CreateTable

from runtime.postgres import control_tables

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Apply this revision."""
    op.execute(CreateTable(control_tables.registry_ids, if_not_exists=True))
