"""A world for tests of rebuilds: a log in a real topic, the live version that has folded it, the next one."""

import asyncio
import base64
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

import asyncpg
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from projections.decode.log_record import decode_record
from projections.projector import Projector
from projections.rebuild.rebuild import Options, Result, rebuild
from projections.store.connection import Session
from projections.store.tables import NEXT, SCHEMA
from projections.store.writer import ensure_positions
from projections.user_keys import OwnerCache
from projections.verify import digests
from runtime.kafka import topics as cluster
from runtime.kafka.clients import Appender, Outgoing
from runtime.kafka.reader import Received
from runtime.settings import Settings
from runtime.users.keys import FIRST_GENERATION, Keyring
from runtime.users.vault import Vault
from schemas.topics import CHANGESETS, WEBHOOKS, full_name
from tests.support.projections_database import Publisher
from tests.support.projections_log import Log

KEY = bytes(range(32))
PARTITIONS = 2
BATCH = 50
"""Records that the live version folds at once."""


class Quiet:
    """Shows nothing, and keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: list[int] = []

    def message(self, sentence: str) -> None:
        self.said.append(sentence)

    def progress(self, done: int, total: int, transactions: int) -> None:
        self.done.append(done)
        assert done <= total


class World:
    """A log that is appended, folded into the live version and rebuilt."""

    def __init__(self, kafka_address: str, prefix: str, dsn: str) -> None:
        self.settings = Settings(
            kafka_address=kafka_address,
            topic_prefix=prefix,
            postgres_dsn=dsn,
            partitions=PARTITIONS,
            key_encryption_key=base64.b64encode(KEY).decode(),
            instance_id="rebuild",
        )  # type: ignore[arg-type]
        self.log = Log(partitions=PARTITIONS)
        self.dsn = dsn
        self._session = Session(self.settings)
        self._appender = Appender(self.settings, client="test")
        self._appended = 0
        self._projector = Projector(
            self._session,
            Publisher(),
            OwnerCache(Keyring(Vault(KEY))),
            self.settings,  # type: ignore[arg-type]
        )

    async def open(self, users: Collection[int]) -> None:
        await cluster.create(self.settings, [self.topic, full_name(WEBHOOKS, self.settings.topic_prefix)])
        await self._appender.start()
        await self.make_users(users)
        await ensure_positions(await self._session.connection(), PARTITIONS)

    async def close(self) -> None:
        await self._appender.stop()
        await self._session.close()

    @property
    def topic(self) -> str:
        return full_name(CHANGESETS, self.settings.topic_prefix)

    async def make_users(self, users: Collection[int]) -> None:
        wrapped = [
            Vault(KEY).wrap_data_key(user.to_bytes(32, "big"), user=user, generation=FIRST_GENERATION) for user in users
        ]
        await self.execute(
            "INSERT INTO tartan.users (user_number, tenant, user_id)"
            " SELECT u, 't', 'u' || u FROM unnest($1::bigint[]) AS k(u)",
            list(users),
        )
        await self.execute(
            "INSERT INTO tartan.user_keys (user_number, generation, wrapped, state)"
            " SELECT u, 1, w, 'active' FROM unnest($1::bigint[], $2::bytea[]) AS k(u, w)",
            list(users),
            wrapped,
        )

    async def append(self) -> list[Received]:
        """Append what the log has and the topic has not."""
        fresh = self.log.records[self._appended :]
        self._appended = len(self.log.records)
        ordered = sorted(fresh, key=lambda record: record.partition)
        for partition, records in groupby(ordered, key=lambda record: record.partition):
            outgoing = [Outgoing(record.key, record.value) for record in records]
            await self._appender.append_many(self.topic, partition, outgoing)
        return fresh

    async def live(self, records: Sequence[Received] | None = None) -> None:
        """Append what is new, and fold it (or only these records) into the live version."""
        fresh = await self.append() if records is None else records
        for begin in range(0, len(fresh), BATCH):
            await self._projector.project([decode_record(record) for record in fresh[begin : begin + BATCH]])

    async def keep(self, *, retention_ms: str) -> None:
        """Give the topic a retention."""
        changed = {"retention.ms": retention_ms, "max.message.bytes": str(CHANGESETS.message_bytes_max)}
        async with self._admin() as admin:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, self.topic, configs=changed)])
        async with asyncio.timeout(10):  # the broker answers before it knows of it itself
            while await self._retention_differs() != (retention_ms != "-1"):
                await asyncio.sleep(0.01)

    async def lose(self, *, before: int) -> None:
        """Let the topic lose each partition's beginning."""
        places = [TopicPartition(self.topic, number) for number in range(PARTITIONS)]
        async with self._admin() as admin:
            await admin.delete_records({place: RecordsToDelete(before_offset=before) for place in places})

    async def _retention_differs(self) -> bool:
        steps = (await cluster.planned(self.settings)).steps
        return any(step.topic == self.topic and step.setting == "retention.ms" for step in steps)

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.kafka_address)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def rebuild(self, **options: Any) -> Result:
        return await rebuild(self.settings, Options(processes=2, swaps=False)._replace(**options), Quiet())

    async def digest(self, schema: str = SCHEMA) -> str:
        async with self.connection(schema) as connection:
            return await digests.full_digest(connection)

    async def both(self) -> tuple[str, str]:
        return await self.digest(), await self.digest(NEXT)

    @asynccontextmanager
    async def connection(self, schema: str = SCHEMA) -> AsyncIterator[asyncpg.Connection]:
        opened = await asyncpg.connect(self.dsn, server_settings={"search_path": schema})
        try:
            yield opened
        finally:
            await opened.close()

    async def execute(self, statement: str, *arguments: object) -> None:
        async with self.connection() as connection:
            await connection.execute(statement, *arguments)

    async def value(self, query: str) -> Any:
        async with self.connection() as connection:
            return await connection.fetchval(query)

    async def until(self, query: str, *, timeout_s: float = 60.0) -> None:
        """Wait until a query is true."""
        async with asyncio.timeout(timeout_s):
            while not await self.value(query):
                await asyncio.sleep(0.02)
