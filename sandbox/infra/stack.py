"""The whole way on one machine: Kafka, Postgres, the Plaid simulator and every stage, each a real process."""

import asyncio
import base64
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from types import TracebackType
from typing import Self

from projections.store.migrate import migrate
from runtime.kafka import topics
from runtime.settings import Settings
from sandbox.infra.cluster import Cluster, ClusterOptions
from sandbox.infra.folders import DataFolder, remove_abandoned
from sandbox.infra.machine import LOOPBACK, free_port
from sandbox.infra.stages import STAGE_PORTS, StageProcess

TENANT = "demo"
PREFIX = "tartan-world-"
"""Of temporary folders. Those of worlds that were killed are cleared away by the next one."""
SIMULATOR, INGEST, STREAMS, PROJECTIONS, GATEWAY = "plaid-simulator", "ingest", "streams", "projections", "gateway"
ALL = frozenset({SIMULATOR, INGEST, STREAMS, PROJECTIONS, GATEWAY})


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """What the world is made of.

    `folder` keeps everything in it; None throws it away at the end. `running` are the stages that there are,
    `projectors` and `streams` how many processes these have. `simulator` are arguments of `tartan plaid-simulator`,
    `environment` further settings of the stages.
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
    """What protects this sandbox; kept beside its data, so that the data can be opened again."""

    master_key: str
    api_key: str
    stream_secret: str


class Stack:
    """Start it, use its addresses, stop it: nothing is left running."""

    def __init__(
        self, options: StackOptions | None = None, *, progress: Callable[[str], None] = lambda _: None
    ) -> None:
        self._options = options or StackOptions()
        self._progress = progress
        self._stack = AsyncExitStack()
        self.stages: dict[str, StageProcess] = {}
        self.folder = self._options.folder or Path(tempfile.mkdtemp(prefix=PREFIX))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held = DataFolder(self.folder / "world")
        self.secrets = _kept_secrets(self.folder)
        ports = _ports(self.folder)
        self.simulator_url = f"http://{LOOPBACK}:{ports[SIMULATOR]}"
        self.ingest_url = f"http://{LOOPBACK}:{ports[INGEST]}"
        self.gateway_url = f"http://{LOOPBACK}:{ports[GATEWAY]}"
        self._ports = ports
        given = self._options.cluster or ClusterOptions()
        kept = self._options.folder is not None
        self.cluster = Cluster(given if not kept or given.folder else _in(self.folder / "servers", given))

    @property
    def postgres_dsn(self) -> str:
        """The database of this world."""
        return self.cluster.postgres_dsn

    def settings(self) -> Settings:
        """The settings that the stages have, for tools that look at the same world."""
        return Settings.model_validate({name[7:].lower(): value for name, value in self.environment().items()})

    async def start(self) -> None:
        """Start all of it, in the order of its dependencies; what stands alone starts together.

        Raises: Halt, naming what does not start; all that was started is then stopped again.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the stages gracefully and at once, then the servers."""
        await asyncio.gather(*(stage.stop() for stage in self.stages.values()))
        await self._stack.aclose()
        self._held.release()
        if self._options.folder is None:
            rmtree(self.folder, ignore_errors=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start(self) -> None:
        await self._held.acquire()
        remove_abandoned(Path(tempfile.gettempdir()), prefix=PREFIX)
        self._progress("Kafka, Postgres and the simulated bank")
        arguments = ["--port", str(self._ports[SIMULATOR]), "--webhook-url", f"{self.ingest_url}/webhooks/plaid"]
        self._launch(
            SIMULATOR,
            [SIMULATOR, *arguments, *self._options.simulator],
            {},
            ready_url=f"{self.simulator_url}/simulator/stats",
        )
        await self._stack.enter_async_context(self.cluster)
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
        stage = self._process(name, arguments, environment, ready_url)
        stage.start()
        self.stages[name] = stage

    def _process(
        self, name: str, arguments: list[str], environment: dict[str, str], ready_url: str | None
    ) -> StageProcess:
        return StageProcess(name, arguments=arguments, environment=environment, folder=self.folder, ready_url=ready_url)

    def environment(self) -> dict[str, str]:
        """The settings of the stages, as they find them in their environment."""
        return {
            "TARTAN_KAFKA_ADDRESS": self.cluster.kafka_address,
            "TARTAN_POSTGRES_DSN": self.postgres_dsn,
            "TARTAN_PLAID_URL": self.simulator_url,
            "TARTAN_PLAID_CLIENT_ID": "simulated-client",
            "TARTAN_PLAID_SECRET": "simulated-secret",
            "TARTAN_PLAID_LIMITS": _quotas(self._options.simulator),
            "TARTAN_WEBHOOK_URL": f"{self.ingest_url}/webhooks/plaid",
            "TARTAN_KEY_ENCRYPTION_KEY": self.secrets.master_key,
            "TARTAN_API_KEY": self.secrets.api_key,
            "TARTAN_GATEWAY_URL": self.gateway_url,
            "TARTAN_API_KEYS": f"{TENANT}:{self.secrets.api_key}",
            "TARTAN_STREAM_SECRET": self.secrets.stream_secret,
            "TARTAN_LOG_FORMAT": "json",
            **self._options.environment,
        }


def _quotas(simulator: Sequence[str]) -> str:
    """The plan of quotas that the simulated Plaid holds its clients to, so that Tartan keeps to the same one."""
    return simulator[simulator.index("--rate-limits") + 1] if "--rate-limits" in simulator else "sandbox"


def _in(folder: Path, options: ClusterOptions) -> ClusterOptions:
    folder.mkdir(parents=True, exist_ok=True)
    return replace(options, folder=folder)


def _kept_secrets(folder: Path) -> Secrets:
    file = folder / "secrets.json"
    if file.exists():
        return Secrets(**json.loads(file.read_text("utf-8")))
    made = Secrets(base64.b64encode(os.urandom(32)).decode(), secrets.token_urlsafe(24), secrets.token_urlsafe(32))
    file.touch(mode=0o600)
    file.write_text(json.dumps(asdict(made)), "utf-8")
    return made


def _ports(folder: Path) -> dict[str, int]:
    """The ports of the last run where they are still free, so that an open page finds its gateway again."""
    file = folder / "ports.json"
    before: dict[str, int] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    found: dict[str, int] = {}
    for name in (SIMULATOR, INGEST, GATEWAY):
        remembered = str(before[name]) if name in before else None
        found[name] = free_port(STAGE_PORTS, remembered=remembered)
    file.write_text(json.dumps(found), "utf-8")
    return found
