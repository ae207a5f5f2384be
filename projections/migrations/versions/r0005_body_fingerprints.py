"""The fingerprint of the request behind a free record: another body under its idempotency key is answered 409.

A fresh database has it from the first revision: here it is added where it is missing.
"""

from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateColumn

from projections.store import tables

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply this revision."""
    column = tables.changesets.c.body_fingerprint
    spec = CreateColumn(column).compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
    op.execute(f"ALTER TABLE {tables.changesets.fullname} ADD COLUMN IF NOT EXISTS {spec}")
