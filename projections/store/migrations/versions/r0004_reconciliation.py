"""Add reconciliations, discrepancies and the look-up of accounts by Plaid's id."""

from projections.store.migrations.frozen_sql import execute

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply this revision."""
    execute("r0004.sql")
