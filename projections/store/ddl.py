"""Write the SQL that creates the tables of one projection version, for a rebuild in a schema of its own.

The migrations created the live version's tables. A version's tables keep their shape: changes for another fold come
with the next version.
"""

from sqlalchemy import MetaData
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from projections.store import grants, tables
from projections.store.grants import Roles

DEFERRED = ("transaction_versions_user", "changesets_user", "changesets_item")
"""Indexes that only readers need: they are created after the tables are filled."""

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


def create(schema: str, number: int, roles: Roles) -> list[str]:
    """Return the statements that create a version's schema, tables and rights, with the indexes that a fold needs."""
    metadata = MetaData()
    declared = [
        table.to_metadata(metadata, schema=schema) for table in (*tables.metadata.sorted_tables, tables.version)
    ]
    return [
        f"CREATE SCHEMA {schema}",
        *(str(CreateTable(table).compile(dialect=_DIALECT)) for table in declared),
        *(statement for name, statement in _indexes(schema).items() if name not in DEFERRED),
        *(f"ALTER TABLE {schema}.{table} ALTER COLUMN {column} SET STORAGE EXTERNAL" for table, column in _COMPRESSED),
        f"INSERT INTO {schema}.version (number, fold) VALUES ({number}, {tables.FOLD})",
        *grants.statements(schema, roles),
        insert_only(schema),
    ]


def deferred(schema: str) -> dict[str, str]:
    """Return the statements that create the indexes of DEFERRED, by name. Idempotence: an existing one stays."""
    return {name: statement for name, statement in _indexes(schema).items() if name in DEFERRED}


def insert_only(schema: str) -> str:
    """Return the statement that creates the trigger `refuse_change` on the ledger."""
    return f"""CREATE TRIGGER ledger_transfers_insert_only
            BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.ledger_transfers
            FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change()"""


def _indexes(schema: str) -> dict[str, str]:
    metadata = MetaData()
    return {
        str(index.name): str(CreateIndex(index, if_not_exists=True).compile(dialect=_DIALECT))
        for table in tables.metadata.sorted_tables
        for index in sorted(table.to_metadata(metadata, schema=schema).indexes, key=lambda index: str(index.name))
    }


# These columns are compressed already: a second compression would cost time and save nothing.
_COMPRESSED = (("changesets", "events"), ("withheld", "value"), ("chunks", "value"))
