"""A database of an earlier release becomes what a fresh one is."""

import asyncio
import gzip
import json
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from projections.store.migrate import migrate
from sandbox.infra.postgres import Postgres
from schemas.errors import Halt
from tests.support.paths import GOLDEN

FIRST = GOLDEN / "revision_0001.sql"
"""What the first release's `tartan migrate` ran on an empty database."""
WITH_ROWS = GOLDEN / "revision_0008_with_rows.sql.gz"
"""Dump of a database of revision 0008 after two Items were linked in the sandbox and one transaction was edited."""


@pytest.fixture
async def empty(postgres: Postgres) -> AsyncIterator[str]:
    """A database with nothing in it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield await postgres.create_database(name)
    await postgres.drop_database(name)


async def test_a_database_of_the_first_release_is_upgraded_to_what_a_fresh_one_is(empty: str, database: str) -> None:
    connection = await asyncpg.connect(empty)
    await connection.execute(FIRST.read_text("utf-8"))
    await connection.execute(
        "INSERT INTO tartan.sync_state (item_id, tenant, user_number, partition, due_at) VALUES ('i', 't', 1, 2, now())"
    )
    await connection.close()

    await asyncio.to_thread(migrate, empty)

    assert await shape(empty) == await shape(database)
    connection = await asyncpg.connect(empty)
    assert await connection.fetchval("SELECT ready_at = due_at FROM tartan.sync_state")
    await connection.close()


async def test_a_database_of_a_newer_release_is_left_alone(empty: str) -> None:
    await asyncio.to_thread(migrate, empty)
    connection = await asyncpg.connect(empty)
    await connection.execute("UPDATE tartan.alembic_version SET version_num = '9999'")
    await connection.close()

    with pytest.raises(Halt, match="revision 9999"):
        await asyncio.to_thread(migrate, empty)


async def test_rows_of_the_release_before_the_glossary_are_kept_under_the_new_names(empty: str, database: str) -> None:
    await _restore(empty, WITH_ROWS)
    before = await _counts(empty)

    await asyncio.to_thread(migrate, empty)

    assert await shape(empty) == await shape(database)
    renamed = {
        "projection.identity_links": "projection.transaction_matches",
        "projection.parts": "projection.chunks",
        "tartan.buckets": "tartan.rate_limit_buckets",
        "tartan.floors": "tartan.published_checkpoints",
        "tartan.parkings": "tartan.quarantines",
        "tartan.sync_attempts": "tartan.sync_runs",
    }
    assert await _counts(empty) == {renamed.get(table, table): count for table, count in before.items()}
    connection = await asyncpg.connect(empty)
    overrides = await connection.fetchval("SELECT user_fields FROM reads.transactions WHERE user_fields IS NOT NULL")
    assert json.loads(overrides)["notes"]["value"] == "lunch with Bob"
    await connection.close()


async def _restore(dsn: str, dump: Path) -> None:
    sql = gzip.decompress(dump.read_bytes()).decode()
    # psql's own commands and settings of the dumping session are not SQL for a server.
    sql = re.sub(r"^(\\.*|SET .*|SELECT pg_catalog\.set_config.*)$", "", sql, flags=re.MULTILINE)
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def _counts(dsn: str) -> dict[str, int]:
    connection = await asyncpg.connect(dsn)
    try:
        tables = await connection.fetch(
            "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname IN ('tartan', 'projection')"
        )
        return {name: await connection.fetchval(f"SELECT count(*) FROM {name}") for (name,) in tables}
    finally:
        await connection.close()


async def shape(dsn: str) -> dict[str, set[str]]:
    """Columns with their types, indexes and functions, by schema and name."""
    connection = await asyncpg.connect(dsn)
    try:
        columns = await connection.fetch(_COLUMNS)
        indexes = await connection.fetch(_INDEXES)
        functions = await connection.fetch(_FUNCTIONS)
    finally:
        await connection.close()
    return {
        "columns": {" ".join(map(str, row)) for row in columns},
        "indexes": {row[0] for row in indexes},
        "functions": {row[0] for row in functions},
    }


_OURS = "('tartan', 'projection', 'reads')"
_COLUMNS = f"""
    SELECT table_schema, table_name, column_name, data_type, is_nullable, column_default, generation_expression
    FROM information_schema.columns WHERE table_schema IN {_OURS}"""
_INDEXES = f"SELECT indexdef FROM pg_indexes WHERE schemaname IN {_OURS}"
_FUNCTIONS = f"""
    SELECT pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname IN {_OURS}"""
