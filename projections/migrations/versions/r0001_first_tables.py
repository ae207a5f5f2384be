"""Control tables, the first projection version, and the views that readers use."""

from alembic import op
from sqlalchemy import MetaData
from sqlalchemy.schema import CreateIndex, CreateTable

from projections.store import tables
from runtime.postgres import control_tables as control

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Apply this revision."""
    for schema in (tables.SCHEMA, tables.READS_SCHEMA):
        op.execute(f"CREATE SCHEMA {schema}")
    for metadata in (control.metadata, tables.metadata):
        _create(metadata)
    for statement in (*_storage(tables.SCHEMA), *_insert_only(tables.SCHEMA)):
        op.execute(statement)


def _create(metadata: MetaData) -> None:
    for table in metadata.sorted_tables:
        op.execute(CreateTable(table))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            op.execute(CreateIndex(index))
        for column in table.columns:
            if column.comment is not None:
                text = column.comment.replace("'", "''").replace(":", r"\:")
                op.execute(f"COMMENT ON COLUMN {table.fullname}.\"{column.name}\" IS '{text}'")


def _storage(schema: str) -> list[str]:
    # Compressed already: a second compression would cost time and save nothing.
    return [
        f"ALTER TABLE {schema}.changesets ALTER COLUMN events SET STORAGE EXTERNAL",
        f"ALTER TABLE {schema}.withheld ALTER COLUMN value SET STORAGE EXTERNAL",
        f"ALTER TABLE {schema}.parts ALTER COLUMN value SET STORAGE EXTERNAL",
    ]


def _insert_only(schema: str) -> list[str]:
    return [
        f"""CREATE FUNCTION {schema}.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION 'ledger transfers are only inserted, a correction is a reversal'
                    USING ERRCODE = 'restrict_violation';
            END $$""",
        f"""CREATE TRIGGER ledger_transfers_insert_only
            BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.ledger_transfers
            FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change()""",
    ]
