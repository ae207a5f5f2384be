"""The stack of `tartan chaos`: two instances of each stage that allows it, and a proxy before each neighbour."""

import asyncio
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit, urlunsplit

from runtime.settings import Settings
from sandbox.chaos.crashing_stage import CrashingStage
from sandbox.chaos.proxy import Proxy
from sandbox.infra.cluster import ClusterOptions
from sandbox.infra.kafka import KafkaOptions
from sandbox.infra.machine import LOOPBACK, free_port
from sandbox.infra.stack import SIMULATOR, Stack, StackOptions, settings_from
from sandbox.infra.stages import STAGE_PORTS, StageProcess

PARTITIONS = 4
SHORT_S = 3
"""Leases, sessions, locks and transactions: a zombie that sleeps longer has lost them all."""
SCHEDULE_S = 6
"""Interval of scheduled sync runs, which find the changes of lost webhooks."""
TIME_SCALE = 0.05
"""Factor of Plaid's waits: a webhook is retried after 1.5, 6, 24 s."""

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
    # The check is for lost and duplicate records; an open breaker would only delay Items for minutes.
    "TARTAN_INSTITUTION_FAILURES_MAX": "1000",
}
PATIENT = {"lock_timeout_s": 30.0, "statement_timeout_s": 60.0, "transaction_timeout_s": 120.0}
"""Timeouts of the verifier, which reads every row in one transaction."""


class ProxiedStack(Stack):
    """Run a stack whose processes crash by plan and reach their neighbours through proxies."""

    def __init__(self, *, seed: int, progress: Callable[[str], None] = lambda _: None) -> None:
        targets: dict[str, Callable[[], str]] = {
            "kafka": lambda: self.cluster.kafka_address,
            "postgres": lambda: f"{LOOPBACK}:{urlsplit(self.postgres_dsn).port}",
            "plaid": lambda: self.simulator_url.removeprefix("http://"),
            "webhooks": lambda: self._ingest_address,
        }
        self.proxies = {name: Proxy(target, port=free_port(STAGE_PORTS)) for name, target in targets.items()}
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

    def crashing_stage(self, name: str) -> CrashingStage:
        """Return the process of this name."""
        stage = self.stages[name]
        assert isinstance(stage, CrashingStage)
        return stage

    @property
    def crashing_stages(self) -> list[CrashingStage]:
        """All processes but the simulator."""
        return [stage for stage in self.stages.values() if isinstance(stage, CrashingStage)]

    def settings(self) -> Settings:
        """Return the settings of tools that observe the stack: past the proxies, with long timeouts."""
        return self.stage_settings().model_copy(update=PATIENT)

    def stage_settings(self) -> Settings:
        """Return the settings of the stages, past the proxies."""
        return settings_from(super().environment())

    def environment(self) -> dict[str, str]:
        """Return the settings of the stages, whose addresses are those of the proxies."""
        dsn = urlsplit(self.postgres_dsn)
        account, _, _ = dsn.netloc.rpartition("@")
        return {
            **super().environment(),
            "TARTAN_KAFKA_ADDRESS": self.proxies["kafka"].address,
            "TARTAN_POSTGRES_DSN": urlunsplit(dsn._replace(netloc=f"{account}@{self.proxies['postgres'].address}")),
            "TARTAN_PLAID_URL": f"http://{self.proxies['plaid'].address}",
        }

    def join(self, stage: str, *, number: int) -> CrashingStage:
        """Start one more instance of a stage."""
        name = f"{stage}-{number}"
        self._launch(name, [stage], self.environment() | {"TARTAN_INSTANCE_ID": str(number)})
        return self.crashing_stage(name)

    async def start(self) -> None:
        """Start the proxies, then the stack behind them."""
        await asyncio.gather(*(proxy.start() for proxy in self.proxies.values()))
        await super().start()

    async def stop(self) -> None:
        """Kill all processes: nothing of them is read again."""
        for stage in self.crashing_stages:
            stage.vanish()
        await super().stop()
        await asyncio.gather(*(proxy.stop() for proxy in self.proxies.values()))

    def _process_type(self, name: str) -> type[StageProcess]:
        return StageProcess if name == SIMULATOR else CrashingStage
