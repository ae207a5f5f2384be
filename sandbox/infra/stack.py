"""The whole installation on one machine: Kafka, Postgres, the Plaid simulator and every stage, each a real process."""

import asyncio
import base64
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import Self

from projections.store.migrate import migrate
from runtime.kafka import topics
from runtime.settings import Settings
from sandbox.infra.clients import Application
from sandbox.infra.cluster import Cluster, ClusterOptions
from sandbox.infra.folders import DataFolder, remove_abandoned
from sandbox.infra.machine import LOOPBACK, free_port
from sandbox.infra.stages import STAGE_PORTS, StageProcess

TENANT = "demo"
PREFIX = "tartan-stack-"
"""Prefix of temporary folders; the next start removes those of stacks that were killed."""
SIMULATOR, INGEST, STREAMS, PROJECTIONS, GATEWAY = "plaid-simulator", "ingest", "streams", "projections", "gateway"
ALL = frozenset({SIMULATOR, INGEST, STREAMS, PROJECTIONS, GATEWAY})


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """Options of a stack.

    `folder` keeps all data; None removes it at the end. `running` are the stages to start, `projectors` and `streams`
    their numbers of processes. `simulator` are arguments of `tartan plaid-simulator`, `environment` further settings
    of the stages.
    """

    folder: Path | None = None
    running: Collection[str] = ALL
    projectors: int = 1
    streams: int = 1
    simulator: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    cluster: ClusterOptions | None = None


@dataclass(frozen=True, slots=True)
class Secrets:
    """Keys of this sandbox, stored beside its data, so that a later run can open the data again."""

    master_key: str
    api_key: str
    stream_secret: str


class Stack:
    """Start the installation, give its addresses, stop it; no process outlives it."""

    def __init__(
        self, options: StackOptions | None = None, *, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self._options = options or StackOptions()
        self._progress = progress
        self.stages: dict[str, StageProcess] = {}
        self.folder = self._options.folder or Path(tempfile.mkdtemp(prefix=PREFIX))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = DataFolder(self.folder / "stack")
        self.secrets = _load_secrets(self.folder)
        self._ports = _choose_ports(self.folder)
        self.simulator_url, self.ingest_url, self.gateway_url = (
            f"http://{LOOPBACK}:{self._ports[name]}" for name in (SIMULATOR, INGEST, GATEWAY)
        )
        cluster = self._options.cluster or ClusterOptions()
        if self._options.folder is not None and cluster.folder is None:
            cluster = replace(cluster, folder=self.folder / "servers")
        self.cluster = Cluster(cluster)

    @property
    def postgres_dsn(self) -> str:
        """Connection string of the database."""
        return self.cluster.postgres_dsn

    def settings(self) -> Settings:
        """Return the settings of the stages, for tools that observe the stack."""
        return settings_from(self.environment())

    def application(self) -> Application:
        """Return a client of the gateway with the API key of this stack."""
        return Application(self.gateway_url, self.secrets.api_key)

    def environment(self) -> dict[str, str]:
        """Return the settings of the stages as environment variables."""
        simulator = self._options.simulator
        # Tartan keeps to the same plan of quotas that the simulated Plaid enforces.
        limits = simulator[simulator.index("--rate-limits") + 1] if "--rate-limits" in simulator else "sandbox"
        return {
            "TARTAN_KAFKA_ADDRESS": self.cluster.kafka_address,
            "TARTAN_POSTGRES_DSN": self.postgres_dsn,
            "TARTAN_PLAID_URL": self.simulator_url,
            "TARTAN_PLAID_CLIENT_ID": "simulated-client",
            "TARTAN_PLAID_SECRET": "simulated-secret",
            "TARTAN_PLAID_LIMITS": limits,
            "TARTAN_WEBHOOK_URL": f"{self.ingest_url}/webhooks/plaid",
            "TARTAN_KEY_ENCRYPTION_KEY": self.secrets.master_key,
            "TARTAN_API_KEY": self.secrets.api_key,
            "TARTAN_GATEWAY_URL": self.gateway_url,
            "TARTAN_API_KEYS": f"{TENANT}:{self.secrets.api_key}",
            "TARTAN_STREAM_SECRET": self.secrets.stream_secret,
            "TARTAN_LOG_FORMAT": "json",
            **self._options.environment,
        }

    async def start(self) -> None:
        """Start everything in the order of its dependencies; independent processes start concurrently.

        Raises: Halt, naming the process that does not start; all that was started is then stopped again.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the stages gracefully and concurrently, then the servers."""
        await asyncio.gather(*(stage.stop() for stage in self.stages.values()))
        await self.cluster.stop()
        self._lock.release()
        if self._options.folder is None:
            rmtree(self.folder, ignore_errors=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _start(self) -> None:
        await self._lock.acquire()
        remove_abandoned(Path(tempfile.gettempdir()), prefix=PREFIX)
        self._progress("Kafka, Postgres and the simulated bank")
        arguments = ["--port", str(self._ports[SIMULATOR]), "--webhook-url", f"{self.ingest_url}/webhooks/plaid"]
        arguments = [SIMULATOR, *arguments, *self._options.simulator]
        self._launch(SIMULATOR, arguments, {}, ready_url=f"{self.simulator_url}/simulator/stats")
        await self.cluster.start()
        self._progress("tables and topics")
        await asyncio.gather(asyncio.to_thread(migrate, self.postgres_dsn), topics.apply(self.settings()))
        self._progress("stages: ingest, streams, projections, gateway")
        environment = self.environment()
        self._launch(INGEST, [INGEST], environment | {"TARTAN_PORT": str(self._ports[INGEST])})
        for stage, count in ((STREAMS, self._options.streams), (PROJECTIONS, self._options.projectors)):
            for number in range(1, count + 1):
                name = stage if number == 1 else f"{stage}-{number}"
                self._launch(name, [stage], environment | {"TARTAN_INSTANCE_ID": str(number)})
        self._launch(GATEWAY, [GATEWAY], environment | {"TARTAN_PORT": str(self._ports[GATEWAY])})
        await asyncio.gather(*(stage.ready() for stage in self.stages.values()))

    def _launch(
        self, name: str, arguments: list[str], environment: dict[str, str], *, ready_url: str | None = None
    ) -> None:
        if arguments[0] not in self._options.running:
            return
        self.stages[name] = self._process_type(name)(
            name, arguments=arguments, environment=environment, folder=self.folder, ready_url=ready_url
        )
        self.stages[name].start()

    def _process_type(self, name: str) -> type[StageProcess]:
        return StageProcess


def settings_from(environment: Mapping[str, str]) -> Settings:
    """Return the settings that environment variables of a stage give."""
    return Settings.model_validate({name.removeprefix("TARTAN_").lower(): value for name, value in environment.items()})


def _load_secrets(folder: Path) -> Secrets:
    file = folder / "secrets.json"
    if file.exists():
        return Secrets(**json.loads(file.read_text("utf-8")))
    drawn = Secrets(base64.b64encode(os.urandom(32)).decode(), secrets.token_urlsafe(24), secrets.token_urlsafe(32))
    file.touch(mode=0o600)
    file.write_text(json.dumps(asdict(drawn)), "utf-8")
    return drawn


def _choose_ports(folder: Path) -> dict[str, int]:
    """Return the ports of the last run where they are still free, so that an open page reaches its gateway again."""
    file = folder / "ports.json"
    before: dict[str, int] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    ports = {
        name: free_port(STAGE_PORTS, remembered=str(before[name]) if name in before else None)
        for name in (SIMULATOR, INGEST, GATEWAY)
    }
    file.write_text(json.dumps(ports), "utf-8")
    return ports
