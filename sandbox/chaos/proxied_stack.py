"""The world that chaos happens in: two instances where there can be two, and a proxy before each neighbour."""

import asyncio
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit, urlunsplit

from runtime.settings import Settings
from sandbox.chaos.crashing_stage import CrashingStage
from sandbox.chaos.proxy import Proxy
from sandbox.chaos.schedule import NEIGHBOURS
from sandbox.infra.cluster import ClusterOptions
from sandbox.infra.kafka import KafkaOptions
from sandbox.infra.machine import LOOPBACK, free_port
from sandbox.infra.stack import SIMULATOR, Stack, StackOptions
from sandbox.infra.stages import STAGE_PORTS, StageProcess

PARTITIONS = 4
SHORT_S = 3
"""Leases, sessions, locks and transactions: a zombie that sleeps longer has lost them all."""
SCHEDULE_S = 6
"""An Item whose webhook was lost is asked about after so long."""
TIME_SCALE = 0.05
"""Of Plaid's waits: a webhook is tried again after 1.5, 6, 24 s."""

SHORT_TIMES: Mapping[str, str] = {
    "TARTAN_PARTITIONS": str(PARTITIONS),
    "TARTAN_LEASE_S": str(SHORT_S),
    "TARTAN_LOCK_TIMEOUT_S": str(SHORT_S),
    "TARTAN_STATEMENT_TIMEOUT_S": str(SHORT_S),
    "TARTAN_TRANSACTION_TIMEOUT_S": str(SHORT_S),
    "TARTAN_SESSION_TIMEOUT_S": str(SHORT_S),
    "TARTAN_APPEND_TIMEOUT_S": str(SHORT_S),
    "TARTAN_PLAID_TIMEOUT_S": str(SHORT_S),
    "TARTAN_SCHEDULE_INTERVAL_S": str(SCHEDULE_S),
    # What is looked for is lost and doubled facts, not how a breaker holds an Item back for minutes.
    "TARTAN_INSTITUTION_FAILURES_MAX": "1000",
}


PATIENT = {"lock_timeout_s": 30.0, "statement_timeout_s": 60.0, "transaction_timeout_s": 120.0}
"""A proof reads every row in one transaction."""


class ProxiedStack(Stack):
    """A world whose processes die by plan and reach their neighbours through proxies."""

    def __init__(self, *, seed: int, progress: Callable[[str], None] = lambda _: None) -> None:
        self.proxies = {name: Proxy(self._target(name), port=free_port(STAGE_PORTS)) for name in NEIGHBOURS}
        kafka = KafkaOptions(
            advertised=self.proxies["kafka"].address, settings={"group.min.session.timeout.ms": "1000"}
        )
        options = StackOptions(
            projectors=2,
            streams=2,
            environment=SHORT_TIMES,
            cluster=ClusterOptions(kafka=kafka),
            simulator=("--seed", str(seed), "--ready", "--rate-limits", "off", "--time-scale", str(TIME_SCALE)),
        )
        super().__init__(options, progress=progress)
        self._ingest_address = self.ingest_url.removeprefix("http://")
        self.ingest_url = f"http://{self.proxies['webhooks'].address}"

    def victim(self, name: str) -> CrashingStage:
        """The process of this name."""
        stage = self.stages[name]
        assert isinstance(stage, CrashingStage)
        return stage

    @property
    def victims(self) -> list[CrashingStage]:
        """All of them."""
        return [stage for stage in self.stages.values() if isinstance(stage, CrashingStage)]

    def settings(self) -> Settings:
        """The settings of tools that look at this world: they go past the proxies, and take their time."""
        return self.stage_settings().model_copy(update=PATIENT)

    def stage_settings(self) -> Settings:
        """The settings of the stages, by the direct way."""
        return Settings.model_validate({name[7:].lower(): value for name, value in super().environment().items()})

    def environment(self) -> dict[str, str]:
        """The settings of the stages, which go through the proxies."""
        return {
            **super().environment(),
            "TARTAN_KAFKA_ADDRESS": self.proxies["kafka"].address,
            "TARTAN_POSTGRES_DSN": _moved(self.postgres_dsn, self.proxies["postgres"].port),
            "TARTAN_PLAID_URL": f"http://{self.proxies['plaid'].address}",
        }

    def join(self, stage: str, *, number: int) -> CrashingStage:
        """Start one more instance of a stage."""
        name = f"{stage}-{number}"
        self._launch(name, [stage], self.environment() | {"TARTAN_INSTANCE_ID": str(number)})
        return self.victim(name)

    async def start(self) -> None:
        """Start the proxies, and then the world behind them."""
        await asyncio.gather(*(proxy.start() for proxy in self.proxies.values()))
        await super().start()

    async def stop(self) -> None:
        """End everything at once: what it was is known by now."""
        for stage in self.victims:
            stage.vanish()
        await super().stop()
        await asyncio.gather(*(proxy.stop() for proxy in self.proxies.values()))

    def _process(
        self, name: str, arguments: list[str], environment: dict[str, str], ready_url: str | None
    ) -> StageProcess:
        if name == SIMULATOR:
            return super()._process(name, arguments, environment, ready_url)
        victim = CrashingStage(
            name, arguments=arguments, environment=environment, folder=self.folder, ready_url=ready_url
        )
        victim.prepare()
        return victim

    def _target(self, neighbour: str) -> Callable[[], str]:
        return {
            "kafka": lambda: self.cluster.kafka_address,
            "postgres": lambda: f"{LOOPBACK}:{urlsplit(self.postgres_dsn).port}",
            "plaid": lambda: self.simulator_url.removeprefix("http://"),
            "webhooks": lambda: self._ingest_address,
        }[neighbour]


def sleep_of_a_zombie_s(settings: Settings) -> float:
    """Longer than its leases, transactions and session."""
    return max(settings.lease_s, settings.transaction_timeout_s, settings.session_timeout_s) + 1.5


def append_timeout_s(settings: Settings) -> float:
    """After which an append is in doubt."""
    return settings.append_timeout_s


def _moved(dsn: str, port: int) -> str:
    parts = urlsplit(dsn)
    account, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{account}@{LOOPBACK}:{port}"))
