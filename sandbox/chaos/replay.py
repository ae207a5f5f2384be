"""The log folded again from its start, by the real projector, into a database of its own."""

import asyncio
from collections.abc import Mapping, Sequence

import asyncpg
from aiokafka import ConsumerRecord

from projections import admission, digests, store
from projections.migrate import migrate
from projections.ownership import Ownership
from projections.project import EVENTS_MAX, Projector
from projections.publish import Committed
from projections.session import Session
from runtime.reader import Received
from runtime.settings import Settings
from runtime.users import Keyring
from runtime.vault import Vault
from sandbox.postgres import Postgres

TEMPLATE, REPLAY = "tartan_template", "tartan_replay"
PRIMARY = ("users", "user_keys", "parkings")
"""Tables of facts that no log has and that decide how it is read."""
BATCH_RECORDS = 200
"""Another cut than the stage's, whose batches are what happened to be there."""


class _Nobody:
    """Takes what is handed over and publishes nothing: it was published before."""

    def floors(self) -> Mapping[int, int]:
        return {}

    def stored(self, _: Mapping[int, int]) -> None:
        pass

    def hand(self, _: Committed) -> None:
        pass

    async def room(self) -> None:
        pass


async def differing(postgres: Postgres, live: asyncpg.Connection, settings: Settings,
                    log: Mapping[int, Sequence[ConsumerRecord]]) -> list[str]:  # fmt: skip
    """The tables in which the live database and a replay of its log differ.

    Shape: `log` has the whole topic `changesets` by partition; what the live database has not read is left out.
    """
    async with live.transaction(isolation="repeatable_read", readonly=True):
        there = await digests.full_rows(live)
        positions = {row["partition"]: row["position"] for row in await live.fetch(_POSITIONS)}
    await postgres.drop_database(REPLAY)
    dsn = await postgres.create_database(REPLAY, template=TEMPLATE)
    replayed = Session(settings.model_copy(update={"postgres_dsn": _secret(settings, dsn)}))
    try:
        connection = await replayed.connection()
        await store.ensure_positions(connection, settings.partitions)
        await _copy_primary(live, connection)
        await _fold(replayed, settings, log, positions)
        again = await digests.full_rows(connection)
    finally:
        await replayed.close()
    return [_told(name, there[name], again[name]) for name in there if there[name] != again[name]]


async def make_template(postgres: Postgres) -> None:
    """Make the database that each replay begins as a copy of."""
    await asyncio.to_thread(migrate, await postgres.create_database(TEMPLATE))


async def _fold(
    session: Session, settings: Settings, log: Mapping[int, Sequence[ConsumerRecord]], positions: Mapping[int, int]
) -> None:  # fmt: skip
    ownership = Ownership(Keyring(Vault(settings.master_key())))
    projector = Projector(session, _Nobody(), ownership, settings)  # type: ignore[arg-type]
    for partition, records in log.items():
        opened = [
            admission.opened(_received(record)) for record in records if record.offset < positions.get(partition, 0)
        ]
        for begin in range(0, len(opened), BATCH_RECORDS):
            for batch in admission.batches(opened[begin : begin + BATCH_RECORDS], EVENTS_MAX):
                await projector.project(batch)


async def _copy_primary(live: asyncpg.Connection, replay: asyncpg.Connection) -> None:
    for table in PRIMARY:
        rows = await live.fetch(f"SELECT * FROM tartan.{table}")
        if rows:
            await replay.copy_records_to_table(
                table, schema_name="tartan", columns=list(rows[0].keys()), records=[tuple(row) for row in rows]
            )  # fmt: skip


def _received(record: ConsumerRecord) -> Received:
    return Received(
        record.partition, record.offset, record.key, record.value or b"", dict(record.headers or ()), record.timestamp
    )


def _told(name: str, there: Sequence[object], again: Sequence[object]) -> str:
    missing = [row for row in there if row not in again]
    added = [row for row in again if row not in there]
    first = f"; first {str(missing[0] if missing else added[0])[:300]}" if missing or added else "; their order"
    return f"table {name}: {len(missing)} rows of the live one are not in the replay, {len(added)} the other way{first}"


def _secret(settings: Settings, dsn: str) -> object:
    return type(settings.postgres_dsn)(dsn)


_POSITIONS = "SELECT partition, position FROM reads.positions"
