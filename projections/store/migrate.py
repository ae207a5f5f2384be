"""Migrate a database to the schema of this code: Alembic writes the SQL of missing revisions, asyncpg runs it."""

import asyncio
import io

import asyncpg
from alembic import command
from alembic.config import Config

from projections.store import grants, tables, views
from projections.store.grants import Roles
from projections.store.tables import READS_SCHEMA
from runtime.postgres.pool import CONNECT_TIMEOUT_S, CONTROL_SCHEMA, EPOCH
from schemas.errors import Halt

POSTGRES_MIN = 17
"""`transaction_timeout`, which makes a stopped process lose its locks, came with 17."""
SCRIPTS = "projections.store:migrations"
MIGRATION_S_MAX = 3600.0
"""A revision may build an index over years of rows."""

# Earlier releases had a number in the live schema's name.
_RENAMED = f"""DO $$ BEGIN
        IF to_regnamespace('projection_1') IS NOT NULL THEN
            ALTER SCHEMA projection_1 RENAME TO {tables.SCHEMA};
        END IF;
    END $$"""

# Empty tables are filled by this code's fold.
_UNUSED = f"""UPDATE {tables.version.fullname} SET fold = {tables.FOLD}
     WHERE NOT EXISTS (SELECT FROM {tables.SCHEMA}.positions WHERE position > 0)"""

# The epoch of the positions in streams: random, so that no token of another database or history matches by chance.
_EPOCH = f"""INSERT INTO {CONTROL_SCHEMA}.facts (name, value) VALUES ('{EPOCH}', to_jsonb(gen_random_uuid()::text))
     ON CONFLICT (name) DO NOTHING"""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('tartan migrations', 0))"
_HAS_REVISIONS = f"SELECT to_regclass('{CONTROL_SCHEMA}.alembic_version') IS NOT NULL"
_REVISION = f"SELECT version_num FROM {CONTROL_SCHEMA}.alembic_version"


def migrate(dsn: str, roles: Roles = grants.DEFAULT) -> None:
    """Apply all missing revisions in one transaction; a second migration at the same time waits.

    It runs an event loop of its own: from a coroutine call it through asyncio.to_thread.
    Idempotence: a database at the newest revision stays as it is.
    Raises: Halt, where Postgres is older than POSTGRES_MIN, or the user lacks a right that an administrator can grant.
    """
    asyncio.run(_migrate(dsn, roles))


def script(revision: str | None, roles: Roles = grants.DEFAULT) -> str:
    """Return the SQL that leads from a revision (None: an empty database) to the newest one."""
    written = io.StringIO()
    config = Config(output_buffer=written)
    config.set_main_option("script_location", SCRIPTS)
    config.set_main_option("path_separator", "os")
    command.upgrade(config, f"{revision}:head" if revision else "head", sql=True)
    # Alembic creates its own table first, and needs the schema of it. Views and rights follow the last revision.
    shown = ";\n".join([_UNUSED, _EPOCH, _views(), *grants.statements(tables.SCHEMA, roles)])
    return f"CREATE SCHEMA IF NOT EXISTS {CONTROL_SCHEMA};\n{_RENAMED};\n{written.getvalue()}\n{shown};\n"


def _views() -> str:
    """Return the statement that replaces the views, where the live tables are of this code's fold.

    Tables of another fold lack columns until a rebuild. After a swap back the views have columns that an older release
    does not have: it leaves them as they are.
    """
    shown = ";\n".join(views.statements(tables.SCHEMA))
    return f"""DO $versions$ BEGIN
        IF (SELECT fold FROM {tables.version.fullname}) = {tables.FOLD} THEN
            BEGIN
                {shown};
            EXCEPTION WHEN invalid_table_definition THEN
                RAISE WARNING 'views of {READS_SCHEMA} are left as they are: %', SQLERRM;
            END;
        END IF;
    END $versions$"""


async def _migrate(dsn: str, roles: Roles) -> None:
    connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        major = connection.get_server_version().major
        if major < POSTGRES_MIN:
            raise Halt(f"PostgreSQL {major} is too old: Tartan needs {POSTGRES_MIN} or newer")
        async with connection.transaction():
            # The second of two processes that start at once waits here, and then has nothing to do.
            await connection.execute(_LOCK)
            has_revisions = await connection.fetchval(_HAS_REVISIONS)
            revision = await connection.fetchval(_REVISION) if has_revisions else None
            await connection.execute(script(revision, roles), timeout=MIGRATION_S_MAX)
    except asyncpg.InsufficientPrivilegeError as error:
        raise Halt(f"the tables cannot be made or changed: {error}") from error
    finally:
        await connection.close()
