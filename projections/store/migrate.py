"""Migrate a database to the schema of this code: run the frozen SQL of each missing revision, in one transaction.

A file of `migrations` is never changed: a later change of the tables' definitions must not change an earlier revision.
"""

import asyncio
from pathlib import Path

import asyncpg

from projections.store import grants, tables, views
from projections.store.grants import Roles
from projections.store.tables import READS_SCHEMA
from runtime.postgres.pool import CONNECT_TIMEOUT_S, CONTROL_SCHEMA, EPOCH
from schemas.errors import Halt

POSTGRES_MIN = 17
"""`transaction_timeout`, which makes a stopped process lose its locks, came with 17."""
REVISIONS = {path.name[:4]: path for path in sorted(Path(__file__).with_name("migrations").glob("*.sql"))}
"""Revision to its SQL, in order."""
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
# Alembic's table: it ran the revisions of earlier releases.
_VERSION_TABLE = f"""
CREATE SCHEMA IF NOT EXISTS {CONTROL_SCHEMA};
CREATE TABLE IF NOT EXISTS {CONTROL_SCHEMA}.alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)"""
_REVISION = f"SELECT version_num FROM {CONTROL_SCHEMA}.alembic_version"


def migrate(dsn: str, roles: Roles = grants.DEFAULT) -> None:
    """Apply all missing revisions in one transaction; a second migration at the same time waits.

    It runs an event loop of its own: from a coroutine call it through asyncio.to_thread.
    Idempotence: a database at the newest revision stays as it is.
    Raises: Halt, where Postgres is older than POSTGRES_MIN, the database has a revision of a newer release, or the user
    lacks a right that an administrator can grant.
    """
    asyncio.run(_migrate(dsn, roles))


def script(revision: str | None, roles: Roles = grants.DEFAULT) -> str:
    """Return the SQL that leads from a revision (None: an empty database) to the newest one, then views and rights."""
    versions = f"{CONTROL_SCHEMA}.alembic_version"
    statements = [_RENAMED]
    for number, path in REVISIONS.items():
        if revision is None or number > revision:
            record = f"DELETE FROM {versions};\nINSERT INTO {versions} (version_num) VALUES ('{number}')"
            statements += [path.read_text("utf-8").rstrip().rstrip(";"), record]
    statements += [_UNUSED, _EPOCH, _views(), *grants.statements(tables.SCHEMA, roles)]
    return ";\n".join(statements)


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
            await connection.execute(_VERSION_TABLE)
            revision = await connection.fetchval(_REVISION)
            if revision not in (None, *REVISIONS):
                raise Halt(f"the database has revision {revision}, which this release does not know")
            await connection.execute(script(revision, roles), timeout=MIGRATION_S_MAX)
    except asyncpg.InsufficientPrivilegeError as error:
        raise Halt(f"the tables cannot be made or changed: {error}") from error
    finally:
        await connection.close()
