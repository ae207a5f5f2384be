"""Add quotas, breakers, incidents, dead letters, unconfirmed removals and a clock that tests can set."""

from projections.store.migrations.frozen_sql import execute

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Apply this revision."""
    execute("r0002.sql")
