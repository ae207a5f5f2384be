"""The real neighbours: one Kafka and one Postgres a session, a database and a topic prefix a test."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from hypothesis import settings

from projections.store.migrate import migrate
from sandbox.infra.kafka import Kafka
from sandbox.infra.postgres import Postgres, PostgresOptions
from tests.support.examples import examples

TEMPLATE = "template_of_tests"

# The runner's workers inherit its width, which would wrap the tables that commands print.
os.environ.pop("COLUMNS", None)

settings.register_profile("tartan", max_examples=examples(100), deadline=None)
settings.load_profile("tartan")

T = TypeVar("T")

SERVERS = frozenset({"kafka_address", "postgres"})
"""Fixtures that start a server."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a server."""
    for item in items:
        if SERVERS & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.servers)


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a loop of its own, so that each test keeps its own loop."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


@pytest.fixture(scope="session")
def kafka_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running Kafka: `127.0.0.1:port`. It ends with the session, however that ends."""
    kafka = Kafka(tmp_path_factory.mktemp("kafka"))
    finish(kafka.start())
    try:
        yield kafka.address
    finally:
        kafka.kill()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A running Postgres that flushes nothing to the disk."""
    server = Postgres(tmp_path_factory.mktemp("postgres"), options=PostgresOptions(fast=True))
    finish(server.start())
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def template_dsn(postgres: Postgres) -> str:
    """The database that each test gets a copy of, with every table. A copy needs it alone: nothing stays connected."""
    dsn = finish(postgres.create_database(TEMPLATE))
    migrate(dsn)
    return dsn


@pytest.fixture
async def database(postgres: Postgres, template_dsn: str) -> AsyncIterator[str]:
    """A database of this test's own, copied from the template: its connection string."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield await postgres.create_database(name, template=TEMPLATE)
    await postgres.drop_database(name)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    """Connections to this test's database."""
    async with asyncpg.create_pool(database, min_size=1, max_size=20) as opened:
        yield opened


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix for the topics of this test alone; topics that have it are deleted afterwards.

    Kept, a session's partitions would reach the kernel's limit of 65,530 memory maps: each holds two, and 200
    tests with 7 topics of 12 partitions make 33,600.
    """
    prefix = f"test-{uuid.uuid4().hex[:12]}."
    yield prefix
    if "kafka_address" in request.fixturenames:
        finish(_delete_topics(request.getfixturevalue("kafka_address"), prefix))


async def _delete_topics(address: str, prefix: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        topics = [topic for topic in await admin.list_topics() if topic.startswith(prefix)]
        if topics:
            await admin.delete_topics(topics)
    finally:
        await admin.close()
