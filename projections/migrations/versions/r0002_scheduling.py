"""Quotas, breakers, incidents, dead letters, what a restated history leaves open, and a clock that tests can set.

The first revision creates what the tables' definitions say today, so a fresh database has all of this but the clock
already: here it is added where it is missing.
"""

from alembic import op
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from projections.store import tables
from runtime.postgres import control_tables as control
from runtime.postgres.clock import CLOCK_FUNCTION

revision = "0002"
down_revision = "0001"

_NEW_TABLES = (control.buckets, control.breakers, control.incidents, control.dead_letters)
_NEW_COLUMNS = {
    control.sync_state: (
        "refresh_wanted",
        "history_incomplete",
        "refreshed_at",
        "bank_updated_at",
        "bank_seen_at",
        "swept_at",
        "ready_at",
    ),
    tables.items: ("missing_rows", "missing_since"),
    tables.transactions: ("missing_since",),
    tables.changesets: ("redriven_by",),
}
_NEW_INDEXES = {
    control.sync_state: ("sync_state_ready", "sync_state_sweep", "sync_state_institution"),
    control.sync_attempts: ("sync_attempts_failed", "sync_attempts_unlinked"),
    tables.transactions: ("transactions_missing",),
}
_OLD_INDEXES = ("sync_state_due", "sync_state_oldest")


def upgrade() -> None:
    """Apply this revision."""
    op.execute(CLOCK_FUNCTION)
    for table in _NEW_TABLES:
        op.execute(CreateTable(table, if_not_exists=True))
        _index(table, {str(index.name) for index in table.indexes})
    for table, names in _NEW_COLUMNS.items():
        for name in names:
            spec = CreateColumn(table.c[name]).compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
            op.execute(f"ALTER TABLE {table.fullname} ADD COLUMN IF NOT EXISTS {spec}")
    for table, names in _NEW_INDEXES.items():
        _index(table, set(names))
    for name in _OLD_INDEXES:
        op.execute(f"DROP INDEX IF EXISTS {control.metadata.schema}.{name}")
    op.execute(f"ALTER TABLE {control.dead_letters.fullname} ALTER COLUMN value SET STORAGE EXTERNAL")


def _index(table: Table, names: set[str]) -> None:
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        if index.name in names:
            op.execute(CreateIndex(index, if_not_exists=True))
