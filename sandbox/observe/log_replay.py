"""Fold the log again from its start, by the real projector, into tables that no process reads."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

import asyncpg

from projections.decode.log_record import cut_batches, decode_record
from projections.projector import EVENTS_MAX, Projector
from projections.store import ddl, writer
from projections.store.connection import Session
from projections.store.grants import Roles
from projections.user_keys import OwnerCache
from projections.verify import digests
from runtime.archive.log_reader import LogReader
from runtime.postgres.pool import CONNECT_TIMEOUT_S, server_settings
from runtime.settings import Settings
from runtime.users.keys import Keyring
from runtime.users.vault import Vault
from schemas.topics import CHANGESETS

SCHEMA = "projection_replay"
NUMBER = 0
"""No rebuild has this version number."""
BATCH_RECORDS = 200
"""Other batches than those of the stage, whose limits depend on arrival."""


@asynccontextmanager
async def replayed_tables(settings: Settings, positions: Mapping[int, int]) -> AsyncIterator[asyncpg.Connection]:
    """Give a connection to tables folded from the log's beginning up to these positions, by partition.

    Quarantines are not in the log: the records that the database withholds are withheld here too.
    Raises: Diverged, where a record cannot be replayed; Retry, where Kafka or Postgres do not answer.
    """
    connection = await asyncpg.connect(
        settings.postgres_dsn.get_secret_value(),
        timeout=CONNECT_TIMEOUT_S,
        server_settings=server_settings(settings, "replay", search_path=SCHEMA),
    )
    try:
        await connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        async with connection.transaction():
            roles = Roles(settings.projector_role, settings.eraser_role)
            for statement in ddl.create(SCHEMA, NUMBER, roles):
                await connection.execute(statement)
            await writer.ensure_positions(connection, settings.partitions)
        await _fold(settings, positions)
        yield connection
        await connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
    finally:
        connection.terminate()


async def replay_differences(settings: Settings, live: asyncpg.Connection) -> list[str]:
    """Return the tables in which the live version and a replay of its log differ; all rows are read into memory."""
    async with live.transaction(isolation="repeatable_read", readonly=True):
        live_rows = await digests.full_rows(live)
        positions = {row["partition"]: row["position"] for row in await live.fetch(_POSITIONS)}
    async with replayed_tables(settings, positions) as connection:
        replayed_rows = await digests.full_rows(connection)
    return [
        _difference(table, rows, replayed_rows[table])
        for table, rows in live_rows.items()
        if rows != replayed_rows[table]
    ]


async def _fold(settings: Settings, positions: Mapping[int, int]) -> None:
    ownership = OwnerCache(Keyring(Vault(settings.master_key())))
    session, log = Session(settings, schema=SCHEMA, durable=False), LogReader(settings, CHANGESETS)
    projector = Projector(session, None, ownership, settings, version=NUMBER)
    await log.start()
    try:
        for partition, end in positions.items():
            async with aclosing(log.read(partition, 0, end)) as lists:
                async for records in lists:
                    opened = [decode_record(record) for record in records]
                    for begin in range(0, len(opened), BATCH_RECORDS):
                        for batch in cut_batches(opened[begin : begin + BATCH_RECORDS], EVENTS_MAX):
                            await projector.project(batch)
    finally:
        await log.stop()
        await session.close()


def _difference(table: str, live: Sequence[object], replayed: Sequence[object]) -> str:
    missing = [row for row in live if row not in replayed]
    added = [row for row in replayed if row not in live]
    first = f"; first {str((missing or added)[0])[:300]}" if missing or added else "; their order"
    return f"table {table}: {len(missing)} live rows are not in the replay, {len(added)} the other way{first}"


_POSITIONS = "SELECT partition, position FROM positions"
