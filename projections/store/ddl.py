"""The tables of one projection version as SQL: for a rebuild, which fills them in a schema of their own.

The live version's were made by the migrations. A version's tables keep their shape as long as it lives: what another
fold needs comes with the next version.
"""

from sqlalchemy import MetaData, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from projections.store import grants, tables
from projections.store.grants import Roles

DEFERRED = ("transaction_versions_user", "changesets_user", "changesets_item")
"""Indexes that only readers need: they are made once the tables are filled."""

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


def create(schema: str, number: int, roles: Roles) -> list[str]:
    """The statements that make a version's schema and tables, with all that a fold needs."""
    metadata = MetaData()
    declared = [table.to_metadata(metadata, schema=schema) for table in (*_declared(), tables.version)]
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
    """The statements that make the indexes of DEFERRED, by name. Idempotence: one that is there stays."""
    return {name: statement for name, statement in _indexes(schema).items() if name in DEFERRED}


def insert_only(schema: str) -> str:
    """The statement that binds `refuse_change` of the rights to the ledger."""
    return f"""CREATE TRIGGER ledger_transfers_insert_only
            BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.ledger_transfers
            FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change()"""


def _declared() -> list[Table]:
    return list(tables.metadata.sorted_tables)


def _indexes(schema: str) -> dict[str, str]:
    metadata = MetaData()
    return {
        str(index.name): str(CreateIndex(index, if_not_exists=True).compile(dialect=_DIALECT))
        for table in _declared()
        for index in sorted(table.to_metadata(metadata, schema=schema).indexes, key=lambda index: str(index.name))
    }


# Compressed already: a second compression would cost time and save nothing.
_COMPRESSED = (("changesets", "events"), ("withheld", "value"), ("chunks", "value"))
