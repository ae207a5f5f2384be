"""Kafka and Postgres, started together, with their data in a given folder or in a temporary one."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Self

from sandbox.infra.folders import remove_abandoned
from sandbox.infra.kafka import Kafka, KafkaOptions
from sandbox.infra.postgres import Postgres, PostgresOptions
from sandbox.infra.servers import Server

DATABASE = "tartan"
PREFIX = "tartan-sandbox-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Options of the two servers.

    `folder` keeps the data; None removes it at the end, and Postgres then flushes nothing to the disk.
    A `kafka_address` or `postgres_dsn` that is set is used, and that server is not started.
    """

    folder: Path | None = None
    kafka_address: str | None = None
    postgres_dsn: str | None = None
    kafka_port: int | None = None
    postgres_port: int | None = None
    kafka: KafkaOptions | None = None
    postgres: PostgresOptions | None = None


class Cluster:
    """Run the two servers that Tartan needs; `kafka` and `postgres` are None where an address was given."""

    def __init__(self, options: ClusterOptions | None = None) -> None:
        self._options = options or ClusterOptions()
        self._temporary: Path | None = None
        self.kafka: Kafka | None = None
        self.postgres: Postgres | None = None

    @property
    def kafka_address(self) -> str:
        """Host and port of Kafka, ours or the given one."""
        if self._options.kafka_address is not None:
            return self._options.kafka_address
        assert self.kafka is not None, "the cluster was never started"
        return self.kafka.address

    @property
    def postgres_dsn(self) -> str:
        """Connection string of the database `tartan` of our server, or the given one."""
        if self._options.postgres_dsn is not None:
            return self._options.postgres_dsn
        assert self.postgres is not None, "the cluster was never started"
        return self.postgres.dsn(DATABASE)

    @property
    def servers(self) -> dict[str, Server]:
        """Servers of our own, by name."""
        servers = {"kafka": self.kafka, "postgres": self.postgres}
        return {name: server for name, server in servers.items() if server is not None}

    async def start(self) -> None:
        """Start both servers concurrently and create the database.

        Raises: Halt, where one does not start; the other is then stopped again.
        """
        self._create_servers()
        try:
            async with asyncio.TaskGroup() as group:
                for server in self.servers.values():
                    group.create_task(server.start())
            if self.postgres is not None:
                await self.postgres.ensure_database(DATABASE)
        except BaseExceptionGroup as problems:
            await self.stop()
            # The first failure cancels the other start, so the group holds exactly one error.
            raise problems.exceptions[0] from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop both servers; with temporary data they are killed, since nothing of it is read again."""
        if self._temporary is None:
            await asyncio.gather(*(server.stop() for server in self.servers.values()))
            return
        self.kill()
        rmtree(self._temporary, ignore_errors=True)
        self._temporary = None

    def kill(self) -> None:
        """Kill both servers, as a power cut would."""
        for server in self.servers.values():
            server.kill()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _create_servers(self) -> None:
        options, folder = self._options, self._options.folder
        if folder is None:
            parent = Path(tempfile.gettempdir())
            remove_abandoned(parent, prefix=PREFIX)
            folder = self._temporary = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        if options.kafka_address is None:
            self.kafka = Kafka(folder / "kafka", port=options.kafka_port, options=options.kafka)
        if options.postgres_dsn is None:
            postgres_options = options.postgres or PostgresOptions(fast=self._temporary is not None)
            self.postgres = Postgres(folder / "postgres", port=options.postgres_port, options=postgres_options)
