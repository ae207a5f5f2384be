"""Describe the control tables in the database; no row changes."""

from projections.store.migrations.frozen_sql import execute

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Apply this revision."""
    execute("r0010.sql")
