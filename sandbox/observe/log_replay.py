"""The log folded again from its start, by the real projector, into a version of its own that nobody reads."""

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

REPLAY = "projection_replay"
NUMBER = 0
"""No rebuild has this one."""
BATCH_RECORDS = 200
"""Another cut than the stage's, whose batches are what happened to be there."""


@asynccontextmanager
async def replayed(settings: Settings, positions: Mapping[int, int]) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the tables that the log gives from its beginning up to these positions, by partition.

    Quarantines are not the log's: what of it is withheld is what the database withholds.
    Raises: Diverged, where a record cannot be replayed; Retry, where Kafka or Postgres do not answer.
    """
    connection = await asyncpg.connect(
        settings.postgres_dsn.get_secret_value(),
        timeout=CONNECT_TIMEOUT_S,
        server_settings=server_settings(settings, "replay", search_path=REPLAY),
    )
    try:
        await connection.execute(f"DROP SCHEMA IF EXISTS {REPLAY} CASCADE")
        async with connection.transaction():
            roles = Roles(settings.projector_role, settings.eraser_role)
            for statement in ddl.create(REPLAY, NUMBER, roles):
                await connection.execute(statement)
            await writer.ensure_positions(connection, settings.partitions)
        await _fold(settings, positions)
        yield connection
        await connection.execute(f"DROP SCHEMA {REPLAY} CASCADE")
    finally:
        connection.terminate()


async def differing(settings: Settings, live: asyncpg.Connection) -> list[str]:
    """The tables in which the live version and a replay of its log differ; all rows are read into memory."""
    async with live.transaction(isolation="repeatable_read", readonly=True):
        there = await digests.full_rows(live)
        positions = {row["partition"]: row["position"] for row in await live.fetch(_POSITIONS)}
    async with replayed(settings, positions) as connection:
        again = await digests.full_rows(connection)
    return [_told(name, there[name], again[name]) for name in there if there[name] != again[name]]


async def _fold(settings: Settings, positions: Mapping[int, int]) -> None:
    ownership = OwnerCache(Keyring(Vault(settings.master_key())))
    session, log = Session(settings, schema=REPLAY, durable=False), LogReader(settings, CHANGESETS)
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


def _told(name: str, there: Sequence[object], again: Sequence[object]) -> str:
    missing = [row for row in there if row not in again]
    added = [row for row in again if row not in there]
    first = f"; first {str(missing[0] if missing else added[0])[:300]}" if missing or added else "; their order"
    return f"table {name}: {len(missing)} rows of the live one are not in the replay, {len(added)} the other way{first}"


_POSITIONS = "SELECT partition, position FROM positions"
