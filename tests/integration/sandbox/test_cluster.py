"""Data of the sandbox survives restarts and kill -9, and a killed sandbox leaves no server behind."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from sandbox.infra.cluster import Cluster, ClusterOptions
from sandbox.infra.kafka import Kafka
from sandbox.infra.machine import KAFKA_PORTS, POSTGRES_PORTS, free_port
from sandbox.infra.postgres import Postgres, PostgresOptions
from schemas.errors import Halt
from tests.support.paths import ROOT

WAIT_S = 30.0

# Starts a cluster in a folder, prints the pids of its servers and waits to be killed.
SANDBOX = """
import asyncio, sys
from pathlib import Path
from sandbox.infra.cluster import Cluster, ClusterOptions

async def main():
    async with Cluster(ClusterOptions(folder=Path(sys.argv[1]))) as cluster:
        print(cluster.kafka.pid, cluster.postgres.pid, cluster.postgres_dsn, flush=True)
        await asyncio.sleep(300)

asyncio.run(main())
"""


async def send(address: str, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=address, acks="all") as producer:
        await producer.send_and_wait(topic, value)


async def values(address: str, topic: str, count: int) -> list[bytes | None]:
    async with AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        return [(await consumer.getone()).value for _ in range(count)]


async def test_kafka_keeps_records_and_port_over_a_restart_and_kill_9(tmp_path: Path) -> None:
    kafka = Kafka(tmp_path)
    await kafka.start()
    address = kafka.address
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    await admin.create_topics([NewTopic("kept", 1, 1)])
    await admin.close()
    try:
        await send(address, "kept", b"before the kill")
        kafka.kill()
        await kafka.start()
        await send(address, "kept", b"before the restart")
        await kafka.stop()
        await kafka.start()

        assert kafka.address == address
        assert await values(address, "kept", 2) == [b"before the kill", b"before the restart"]
    finally:
        kafka.kill()


async def test_postgres_keeps_rows_port_and_password_over_a_restart_and_kill_9(tmp_path: Path) -> None:
    postgres = Postgres(tmp_path)
    async with postgres:
        dsn = await postgres.ensure_database("kept")
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE TABLE told (n int); INSERT INTO told VALUES (1)")
        postgres.kill()
        connection.terminate()
        await postgres.start()
        connection = await asyncpg.connect(dsn)
        await connection.execute("INSERT INTO told VALUES (2)")
        await connection.close()

    async with postgres:
        assert await postgres.ensure_database("kept") == dsn
        connection = await asyncpg.connect(dsn)
        rows = await connection.fetch("SELECT n FROM told ORDER BY n")
        await connection.close()
    assert [row["n"] for row in rows] == [1, 2]


async def test_kill_9_of_a_sandbox_leaves_no_server_and_frees_its_folder(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SANDBOX, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as sandbox:
        assert sandbox.stdout is not None
        kafka_pid, postgres_pid, dsn = sandbox.stdout.readline().split()
        family = psutil.Process(sandbox.pid).children(recursive=True)
        assert {int(kafka_pid), int(postgres_pid)} <= {member.pid for member in family}

        sandbox.kill()
        sandbox.wait(WAIT_S)

    # The next one waits until the servers of the dead one have let go of the folder.
    async with Postgres(tmp_path / "postgres") as postgres:
        assert postgres.dsn("tartan") == dsn
    _, alive = psutil.wait_procs(family, WAIT_S)
    assert [member for member in alive if member.status() != psutil.STATUS_ZOMBIE] == []


async def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    async with Postgres(tmp_path, options=PostgresOptions(fast=True)):
        with pytest.raises(Halt, match="locked by another running sandbox"):
            await Postgres(tmp_path).start()


@pytest.mark.parametrize(("server", "ports"), [(Kafka, KAFKA_PORTS), (Postgres, POSTGRES_PORTS)])
async def test_a_fixed_port_that_is_taken_is_refused(
    tmp_path: Path, server: type[Kafka] | type[Postgres], ports: range
) -> None:
    port = free_port(ports)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(Halt, match=f"Port {port} for {server.__name__} is taken by"),
    ):
        await server(tmp_path, port=port).start()


async def test_a_server_that_fails_shows_its_log_and_frees_its_folder(tmp_path: Path) -> None:
    wrong = PostgresOptions(fast=True, settings={"shared_buffers": "plenty"})

    with pytest.raises(Halt, match=r"(?s)Postgres ended with code 1 while starting.*shared_buffers"):
        await Postgres(tmp_path, options=wrong).start()

    async with Postgres(tmp_path, options=PostgresOptions(fast=True)) as postgres:
        assert postgres.running


async def test_an_interrupted_making_of_a_database_cluster_is_made_again(tmp_path: Path) -> None:
    unfinished = tmp_path / "data"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("18\n")

    async with Postgres(tmp_path, options=PostgresOptions(fast=True)) as postgres:
        assert postgres.dsn().startswith("postgresql://postgres:")


async def test_a_temporary_cluster_is_gone_afterwards() -> None:
    began = time.monotonic()
    async with Cluster(ClusterOptions(kafka_address="broker:9092")) as cluster:
        assert cluster.kafka is None
        assert cluster.kafka_address == "broker:9092"
        assert cluster.postgres is not None
        folder = cluster.postgres.folder
        connection = await asyncpg.connect(cluster.postgres_dsn)
        assert await connection.fetchval("SHOW fsync") == "off"
        await connection.close()

    assert not folder.exists()
    assert time.monotonic() - began < WAIT_S


async def test_a_cluster_with_both_given_starts_nothing() -> None:
    given = ClusterOptions(kafka_address="broker:9092", postgres_dsn="postgresql://there/tartan")

    async with Cluster(given) as cluster:
        assert (cluster.kafka, cluster.postgres) == (None, None)
        assert cluster.postgres_dsn == "postgresql://there/tartan"


async def test_a_cluster_of_which_one_server_fails_stops_the_other(tmp_path: Path) -> None:
    port = free_port(KAFKA_PORTS)
    cluster = Cluster(ClusterOptions(folder=tmp_path, kafka_port=port))

    with socket.create_server(("127.0.0.1", port)), pytest.raises(Halt, match=f"Port {port} for Kafka"):
        await cluster.start()

    assert cluster.postgres is not None
    assert not cluster.postgres.running
    async with Postgres(tmp_path / "postgres", options=PostgresOptions(fast=True)):
        pass
