"""The whole way, as a user runs it: every stage a process, the simulated bank behind it."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.infra.clients import Application, Bank
from sandbox.infra.cluster import ClusterOptions
from sandbox.infra.postgres import Postgres
from sandbox.infra.stack import Stack, StackOptions
from sandbox.observe.observer import Observer, observing


@dataclass(frozen=True)
class Running:
    """A running world and the ways to look at it."""

    world: Stack
    bank: Bank
    application: Application
    observer: Observer


@pytest.fixture
def further_settings() -> dict[str, str]:
    """Settings of the stages beyond those of every test; a module that needs some has a fixture of this name."""
    return {}


@pytest.fixture
async def running(
    tmp_path: Path,
    kafka_address: str,
    topic_prefix: str,
    postgres: Postgres,
    database: str,
    further_settings: dict[str, str],
) -> AsyncIterator[Running]:
    """Every stage as a process of its own, on the session's Kafka and Postgres."""
    options = StackOptions(
        folder=tmp_path,
        simulator=("--ready", "--rate-limits", "off", "--time-scale", "0.05"),
        environment={
            "TARTAN_TOPIC_PREFIX": topic_prefix,
            "TARTAN_PARTITIONS": "4",
            "TARTAN_LEASE_S": "3",
            **further_settings,
        },
        cluster=ClusterOptions(kafka_address=kafka_address, postgres_dsn=database),
    )
    async with contextlib.AsyncExitStack() as stack:
        world = await stack.enter_async_context(Stack(options))
        observer = await stack.enter_async_context(observing(world.settings()))
        bank = await stack.enter_async_context(Bank(world.simulator_url))
        application = await stack.enter_async_context(Application(world.gateway_url, world.secrets.api_key))
        yield Running(world, bank, application, observer)
