"""Add user overrides, versions of transactions and accounts, transaction matches, reviews and opening balances."""

from projections.store.migrations.frozen_sql import execute

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply this revision."""
    execute("r0003.sql")
