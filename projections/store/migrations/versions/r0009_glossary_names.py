"""Rename tables and columns to the words of the glossary; no row changes but for the stop reason `quarantined`."""

from projections.store.migrations.frozen_sql import execute

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Apply this revision."""
    execute("r0009.sql")
