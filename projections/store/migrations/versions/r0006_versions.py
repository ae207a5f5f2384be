"""Add versions of the projections, rebuilds and the check of the version before each batch."""

from projections.store.migrations.frozen_sql import execute

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Apply this revision."""
    execute("r0006.sql")
