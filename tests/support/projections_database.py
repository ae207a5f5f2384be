"""A database of the projections and a projector on it, for tests on a real Postgres."""

import contextlib
from collections.abc import AsyncIterator, Sequence

import asyncpg

from projections.decode.log_record import decode_record
from projections.gate.check import Owners
from projections.projector import Projector
from projections.publish.publisher import Committed
from projections.store import writer
from projections.store.connection import Session
from projections.verify import digests
from runtime.settings import Settings
from sandbox.infra.postgres import Postgres
from tests.conftest import TEMPLATE
from tests.support.projections_log import keys_of
from tests.support.projections_memory import cut


class Publisher:
    """Publisher that records the committed batches and publishes nothing."""

    def __init__(self) -> None:
        self.committed: list[Committed] = []

    def unstored_checkpoints(self) -> dict[int, int]:
        return {}

    def mark_stored(self, checkpoints: object) -> None:
        pass

    def submit(self, committed: Committed) -> None:
        self.committed.append(committed)

    async def wait_for_room(self) -> None:
        pass


class OwnerCache:
    """Every user has a key and a name, save those above 1,000 (no key until restored) and 500 (a destroyed one)."""

    restored = False

    async def load(self, _: object, users: Sequence[int]) -> Owners:
        known_users = [user for user in users if self.restored or user < 1_000]
        return Owners(
            {user: keys_of(user) if user < 500 or user > 1_000 else None for user in known_users},
            {user: ("t", f"u{user}") for user in known_users},
        )


class Database:
    """A migrated database and a projector on it."""

    def __init__(self, dsn: str, **settings: float) -> None:
        self.settings = Settings(postgres_dsn=dsn, **settings)  # type: ignore[arg-type]
        self.session = Session(self.settings)
        self.publisher = Publisher()
        self.ownership = OwnerCache()
        self.projector = Projector(self.session, self.publisher, self.ownership, self.settings)  # type: ignore[arg-type]
        self.dsn = dsn

    async def project(self, records: Sequence[object], cuts: Sequence[int] = ()) -> None:
        for batch in cut([decode_record(record) for record in records], cuts):  # type: ignore[arg-type]
            await self.projector.project(batch)

    async def connection(self) -> asyncpg.Connection:
        return await self.session.connection()

    async def alter(self, statements: str) -> None:
        """Execute statements as the tables' owner: the projector's role may not change the schema or the ledger."""
        owner = await asyncpg.connect(self.dsn)
        try:
            await owner.execute(statements)
        finally:
            await owner.close()

    async def full(self) -> str:
        return await digests.full_digest(await self.connection())


@contextlib.asynccontextmanager
async def fresh(postgres: Postgres, name: str) -> AsyncIterator[Database]:
    dsn = await postgres.create_database(name, template=TEMPLATE)
    database = Database(dsn)
    await writer.ensure_positions(await database.connection(), 1)
    try:
        yield database
    finally:
        await database.session.close()
        await postgres.drop_database(name)
