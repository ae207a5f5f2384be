"""Create the control tables, the first projection version and the views that readers use."""

from projections.store.migrations.frozen_sql import execute

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Apply this revision."""
    execute("r0001.sql")
