"""Add the schema ids that a schema registry assigned."""

from projections.store.migrations.frozen_sql import execute

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Apply this revision."""
    execute("r0008.sql")
