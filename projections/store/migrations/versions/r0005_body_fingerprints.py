"""Add the fingerprint of the request behind a command."""

from projections.store.migrations.frozen_sql import execute

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply this revision."""
    execute("r0005.sql")
