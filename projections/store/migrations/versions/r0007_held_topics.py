"""Add the partitions of public topics that `tartan republish` fills."""

from projections.store.migrations.frozen_sql import execute

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply this revision."""
    execute("r0007.sql")
