"""Fixtures of the tests of `streams` against a real Kafka and a real Postgres."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.support.streams_desk import Desk
from tests.support.streams_world import World, world


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    """Connect to a database that has Tartan's tables."""
    async with asyncpg.create_pool(database, min_size=1, max_size=8) as connections:
        yield connections


@pytest.fixture
async def desk(database: str) -> AsyncIterator[Desk]:
    """Open a desk at a database that has Tartan's tables."""
    connection = await asyncpg.connect(database)
    try:
        desk = Desk(connection)
        await desk.wait(0)
        yield desk
    finally:
        await connection.close()


@pytest.fixture
async def stage_world(kafka_address: str, topic_prefix: str, database: str) -> AsyncIterator[World]:
    """Start a world without the stage."""
    async with world(kafka_address, topic_prefix, database) as running:
        yield running
