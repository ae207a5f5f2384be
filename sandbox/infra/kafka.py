"""Apache Kafka as a child process: one KRaft node, broker and controller in one."""

import asyncio
import os
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_bytes
from shutil import rmtree

from sandbox.infra.jars import class_path
from sandbox.infra.java import find_java
from sandbox.infra.machine import CONTROLLER_PORTS, KAFKA_PORTS, LOOPBACK, MIB, free_port, require_disk, require_memory
from sandbox.infra.processes import Child, Command, run, start
from sandbox.infra.servers import Server
from schemas.topics import PARTITIONS_DEFAULT

# C1 alone and one thread for the collector: the JVM starts in 2 s and idles at 2 % of a core.
QUICK_START_FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")

# Classes, compiled code, threads and buffers outside of the heap: 170-250 MB resident were measured.
OUTSIDE_HEAP_MIB = 200
# The log of a day of development; a broker whose disk is full shuts its log folder and stops.
DISK_FREE_MIN = 1024 * MIB

# A record holds at most 4 MiB of events and topics allow 16 MiB; a batch adds its header to that.
MESSAGE_BYTES_MAX = 16 * MIB + 64 * 1024

# Measured: a new folder is ready after 2-3 s, one left by kill -9 after 4 s; a busy CI machine takes five times that.
START_TIMEOUT_S = 60.0
FORMAT_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0

# Written by KafkaRaftServer once the broker is unfenced and its listener answers.
_STARTED = b"Kafka Server started"


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOptions:
    """Options of the broker.

    `settings` are lines of server.properties that replace the defaults. `advertised` is the address that clients
    connect to where it is not the broker's own: that of a proxy before it.
    """

    heap_mib: int = 512
    advertised: str | None = None
    jvm_flags: tuple[str, ...] = QUICK_START_FLAGS
    settings: Mapping[str, str] = field(default_factory=dict)


class Kafka(Server):
    """Run Apache Kafka on the loopback."""

    name, ports, stop_timeout_s = "Kafka", KAFKA_PORTS, STOP_TIMEOUT_S

    def __init__(self, folder: Path, *, port: int | None = None, options: KafkaOptions | None = None) -> None:
        super().__init__(folder, port=port)
        self._options = options or KafkaOptions()

    async def _launch(self) -> Child:
        require_memory("Kafka", (self._options.heap_mib + OUTSIDE_HEAP_MIB) * MIB)
        require_disk("Kafka", self.folder, DISK_FREE_MIN)
        java = (await asyncio.to_thread(find_java)).path
        jars = await asyncio.to_thread(class_path)
        self._choose_port()
        controller_port = free_port(CONTROLLER_PORTS, remembered=self._folder.read("controller-port"))
        self._folder.keep("controller-port", str(controller_port))
        self._write_properties(controller_port)
        launcher = [str(java), *self._jvm_arguments(), "-cp", os.pathsep.join(map(str, jars))]
        if not (self.folder / "data" / "meta.properties").exists():
            await run(self._format_command(launcher), timeout_s=FORMAT_TIMEOUT_S)
        child = start(self._command("Kafka", [*launcher, "kafka.Kafka", str(self._properties)]))
        await child.ready(self._started, timeout_s=START_TIMEOUT_S)
        return child

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _write_properties(self, controller_port: int) -> None:
        addresses = {
            "listeners": f"BROKER://{self.address},CONTROLLER://{LOOPBACK}:{controller_port}",
            "advertised.listeners": f"BROKER://{self._options.advertised or self.address}",
            "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
            "log.dirs": str(self.folder / "data"),
        }
        settings = {**SETTINGS, **self._options.settings, **addresses}
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def _jvm_arguments(self) -> list[str]:
        scratch = self.folder / "tmp"
        # Native libraries are unpacked here, and a killed JVM leaves them behind.
        rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        return [f"-Xmx{self._options.heap_mib}m", *self._options.jvm_flags, *JVM_FLAGS, f"-Djava.io.tmpdir={scratch}"]

    def _format_command(self, launcher: list[str]) -> Command:
        # Kept before formatting, so that a format that is killed half-way is repeated with the same id.
        cluster_id = self._folder.read("cluster-id")
        if cluster_id is None:
            # Kafka takes 16 bytes in base64; an id that began with `-` would be parsed as an option.
            cluster_id = urlsafe_b64encode(b"tartan" + token_bytes(10)).decode().rstrip("=")
            self._folder.keep("cluster-id", cluster_id)
        arguments = ["format", "--ignore-formatted", "-t", cluster_id, "-c", str(self._properties)]
        return self._command("Kafka's format", [*launcher, "kafka.tools.StorageTool", *arguments])

    def _command(self, name: str, arguments: list[str]) -> Command:
        return Command(name=name, arguments=arguments, log=self.log, keep_open=(self._folder.lock,))

    def _started(self) -> bool:
        return _STARTED in self.log.read_bytes()


# Flags of every run: the log has times, and no file is left in /tmp.
JVM_FLAGS = (
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
    "-Djava.net.preferIPv4Stack=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
    "-Dorg.slf4j.simpleLogger.showThreadName=false",
)

# Source: Kafka 4.3 documentation, "Broker Configs"; the figures are from runs on two cores.
SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "BROKER",
    "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # Topics are made by `tartan topics apply`; one made by a typing error would hide the error.
    "auto.create.topics.enable": "false",
    "num.partitions": str(PARTITIONS_DEFAULT),
    "message.max.bytes": str(MESSAGE_BYTES_MAX),
    "replica.fetch.max.bytes": str(MESSAGE_BYTES_MAX),
    # One node holds the only copy.
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    # The defaults are 50 partitions each, made at the first use and read again at every start.
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
    # A first member need not wait for others: there are no others.
    "group.initial.rebalance.delay.ms": "0",
    # After kill -9 the controller waits for the session of the dead broker: 11.8 s become 3.8 s.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "500",
    # 128 MiB by default, a quarter of the heap; 16 MiB dedupe 700,000 keys at once.
    "log.cleaner.dedupe.buffer.size": str(16 * MIB),
}
