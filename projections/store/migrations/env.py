"""Alembic's environment. It only writes SQL (projections.store.migrate runs it), so there is no alembic.ini."""

from alembic import context

from runtime.postgres.pool import CONTROL_SCHEMA

context.configure(
    dialect_name="postgresql",
    version_table_schema=CONTROL_SCHEMA,
    transactional_ddl=False,  # the caller's transaction holds all revisions and the lock
    literal_binds=True,
)
context.run_migrations()
