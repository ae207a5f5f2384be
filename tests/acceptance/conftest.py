"""A running stack for the acceptance tests: every stage a process, the simulated bank behind it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox.infra.clients import Application, Bank
from sandbox.infra.cluster import ClusterOptions
from sandbox.infra.postgres import Postgres
from sandbox.infra.stack import Stack, StackOptions
from sandbox.observe.observer import Observer, open_session


@dataclass(frozen=True)
class Running:
    """A running stack and its clients."""

    stack: Stack
    observer: Observer
    bank: Bank
    application: Application


@pytest.fixture
def further_settings() -> dict[str, str]:
    """Return further settings of the stages; a module that needs some overrides this fixture."""
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
    """Run every stage as a process of its own, on the session's Kafka and Postgres."""
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
    async with Stack(options) as stack, open_session(stack) as session:
        yield Running(stack, *session)
