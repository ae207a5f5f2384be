"""The sandbox's Kafka and Postgres answer, and a test gets topics and a database of its own."""

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from sandbox.infra.postgres import Postgres


async def test_a_record_sent_to_kafka_comes_back(kafka_address: str, topic_prefix: str) -> None:
    topic = f"{topic_prefix}echo"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_address)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()

    async with AIOKafkaProducer(bootstrap_servers=kafka_address, acks="all") as producer:
        await producer.send_and_wait(topic, key=b"key", value=b"x" * 1024)

    consumer = AIOKafkaConsumer(bootstrap_servers=kafka_address, auto_offset_reset="earliest")
    async with consumer:
        consumer.assign([TopicPartition(topic, 0)])
        record = await consumer.getone()
    assert (record.offset, record.key, len(record.value)) == (0, b"key", 1024)


async def test_a_database_of_a_test_is_a_copy_of_the_template(database: str, template_dsn: str) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute("CREATE TABLE only_here (n int)")
    version = await connection.fetchval("SHOW server_version_num")
    await connection.close()

    template = await asyncpg.connect(template_dsn)
    found = await template.fetchval("SELECT to_regclass('only_here')")
    await template.close()
    assert int(version) >= 180000
    assert found is None


async def test_a_database_is_copied_and_dropped_with_its_connections(postgres: Postgres) -> None:
    dsn = await postgres.create_database("to_be_dropped")
    connection = await asyncpg.connect(dsn)

    await postgres.drop_database("to_be_dropped")
    await postgres.drop_database("to_be_dropped")

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.execute("SELECT 1")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(dsn)


async def test_without_its_password_nobody_becomes_superuser(postgres: Postgres) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(f"postgresql://postgres:guess@{postgres.address}/postgres")
