"""What is published, read by standard clients: with the gateway's schemas, with a registry's, and with Avro alone."""

import asyncio
import io
import re
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from projections import app
from runtime.kafka import registration, schema_ids
from runtime.settings import Settings
from schemas.contract import subjects
from schemas.encoding import catalogue
from schemas.topics import BALANCES, ITEMS, PUBLIC, TRANSACTIONS, Topic, full_name
from tests.integration.projections.test_stage import PARTITIONS, WAIT_S_MAX, World, projecting, world  # noqa: F401
from tests.support.confluent_registry import ConfluentRegistry, running
from tests.support.gateway_world import serving_api
from tests.support.paths import ROOT
from tests.support.projections_log import Log, account, added, balance, modified, removed, transaction

PAGE = (ROOT / "docs" / "events.md").read_text("utf-8")
SCHEMA_OF = {TRANSACTIONS: catalogue.TRANSACTION_EVENT, BALANCES: catalogue.BALANCE_EVENT, ITEMS: catalogue.ITEM_EVENT}
RECORDS, EVENTS = 14, 16
"""Changesets of the life below, and events of transactions that they cause."""


def life() -> Log:
    """Two users' links, syncs, postings, removals and balances: RECORDS changesets."""
    log = Log()
    for user in (1, 2):
        item = f"item{user}"
        log.link(item, user, *balance(account()))
        log.sync(item, *added(transaction("P", "40", pending=True), transaction("Q", "-0.0000001")), user=user)
        log.sync(item, *removed("P"), *added(transaction("T", "48.5", pending_transaction_id="P")), user=user)
        log.sync(item, *modified(transaction("Q", "100", name="Ünï")), *balance(account(current="52")), user=user)
        log.sync(item, *removed("Q"), user=user)
        log.sync(item, *added(transaction("Q", "7", extra_json='{"new_field":1}')), user=user)
        log.sync(item, *removed("T"), *added(transaction("U", "9")), user=user)
    return log


async def test_standard_clients_read_every_event_with_the_gateways_schemas_and_with_avro_alone(world: World) -> None:
    async with projecting(world):
        await world.append(life())
        await world.until_projected(RECORDS)

    dsn = world.settings.postgres_dsn.get_secret_value()
    async with serving_api(dsn, topic_prefix=world.settings.topic_prefix) as api:
        found = {topic: await asyncio.to_thread(read, world.settings, topic) for topic in PUBLIC}
        decoded = await asyncio.to_thread(by_client, api.address, found)

    for topic, messages in found.items():
        assert decoded[topic] == [by_avro_alone(message.value() or b"", topic) for message in messages]
        assert {schema_id(message) for message in messages} == {SCHEMA_OF[topic]}
    assert Counter(headers(message)["ce_type"] for message in found[TRANSACTIONS]) == {
        "transaction.added": 8,
        "transaction.modified": 4,
        "transaction.removed": 4,
    }
    assert len(found[BALANCES]) == 4
    assert len(found[ITEMS]) == 2


async def test_the_program_of_the_page_keeps_a_table_equal_to_ours(world: World, tmp_path: Path) -> None:
    async with projecting(world):
        await world.append(life())
        await world.until_projected(RECORDS)
    rows = await world.tables.fetch(
        """SELECT encode(own_id, 'hex') AS id, version, amount_value, amount_scale FROM reads.transactions
           WHERE removed_at IS NULL"""
    )

    dsn, prefix = world.settings.postgres_dsn.get_secret_value(), world.settings.topic_prefix
    async with serving_api(dsn, topic_prefix=prefix) as api:
        program = program_of_the_page().replace("http://127.0.0.1:8080", api.address)
        tables = await asyncio.to_thread(
            kept, program.replace("tartan.", prefix), world.settings.kafka_address, tmp_path / "tables"
        )

    assert tables == {(row["id"], row["version"]) for row in rows}
    assert len(tables) == 4


async def test_a_registrys_ids_are_on_the_wire_and_its_outage_stops_no_publisher_that_knows_them(world: World) -> None:
    log = Log()
    log.link("A", 1)
    async with running() as registry:
        settings = world.settings.model_copy(update={"schema_registry_url": registry.url})
        outcomes = await registration.register(settings)
        async with projecting(world._replace(settings=settings)):
            await world.append(log)
            await world.until_projected(1)
        registry.fails_with = 503
        log.sync("A", *added(transaction("T")))
        async with projecting(world._replace(settings=settings)):
            await world.append(log)
            await world.until_projected(2)
        registry.fails_with = None
        found = {topic: await asyncio.to_thread(read, settings, topic) for topic in PUBLIC}
        decoded = await asyncio.to_thread(by_client, registry.url, found)

    ids = {one.number: one.id for one in outcomes}
    assert set(ids.values()).isdisjoint(catalogue.FILES)
    for topic, number in ((ITEMS, catalogue.ITEM_EVENT), (TRANSACTIONS, catalogue.TRANSACTION_EVENT)):
        assert [schema_id(message) for message in found[topic]] == [ids[number]]
    assert decoded[ITEMS][0]["item"]["item_id"] == "A"
    assert decoded[TRANSACTIONS][0]["transaction"]["transaction_id"] == "T"


async def test_while_no_id_is_known_rows_are_made_and_nothing_is_published(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_ids, "RETRY_S_MAX", 0.2)
    log = Log()
    log.link("A", 1)
    async with running(ConfluentRegistry(first_id=70, fails_with=503)) as registry:
        settings = world.settings.model_copy(update={"schema_registry_url": registry.url})
        async with app.stage(settings) as stage:

            async def says(trouble: str) -> bool:
                linked = await world.tables.fetchval("SELECT count(*) FROM reads.items")
                return bool(linked) and any(trouble in one for one in stage.not_ready())

            await world.append(log)
            await world.until(lambda: says("answered 503"))
            registry.fails_with = None
            await world.until(lambda: says("run `tartan schemas register`"))
            assert await asyncio.to_thread(read, settings, ITEMS) == []
            await registration.register(settings)
            await world.until_projected(1)
            assert stage.not_ready() == []

    [linked] = await asyncio.to_thread(read, settings, ITEMS)
    assert schema_id(linked) == 73


def schema_id(message: Message) -> int:
    value = message.value() or b""
    assert value[:1] == subjects.MAGIC
    return int.from_bytes(value[1:5], "big")


def read(settings: Settings, topic: Topic) -> list[Message]:
    """All records of a topic, by a consumer of another library's."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka_address,
            "group.id": "strangers",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    found: list[Message] = []
    try:
        wanted = [TopicPartition(full_name(topic, settings.topic_prefix), number, 0) for number in range(PARTITIONS)]
        ends = [consumer.get_watermark_offsets(where, timeout=10)[1] for where in wanted]
        consumer.assign(wanted)
        while len(found) < sum(ends):
            message = consumer.poll(10)
            assert message is not None, "too late"
            assert message.error() is None
            found.append(message)
    finally:
        consumer.close()
    return sorted(found, key=lambda message: (message.partition(), message.offset()))


def by_client(url: str, found: dict[Topic, list[Message]]) -> dict[Topic, list[Any]]:
    """What a standard client makes of records."""
    with SchemaRegistryClient({"url": url}) as client:
        deserialize = AvroDeserializer(client)
        return {
            topic: [
                deserialize(message.value(), SerializationContext(message.topic() or "", MessageField.VALUE))
                for message in messages
            ]
            for topic, messages in found.items()
        }


def by_avro_alone(value: bytes, topic: Topic) -> Any:
    """What Avro makes of a record by the schema that `tartan schemas show` prints."""
    schema: Any = fastavro.parse_schema(catalogue.full_schema(SCHEMA_OF[topic]))
    return fastavro.schemaless_reader(io.BytesIO(value[5:]), schema, None)


def headers(message: Message) -> dict[str, str]:
    """A record's headers as text."""
    return {name: (value or b"").decode() for name, value in message.headers() or []}


def program_of_the_page() -> str:
    """The page's reader with a registry, and its table: the Python blocks but the one without a registry."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    return blocks[0] + blocks[1]


def kept(program: str, brokers: str, path: Path) -> set[tuple[str, int]]:
    """The table that the page's program makes, stopped in the middle and begun again at the start of the topic."""
    named: dict[str, Any] = {}
    exec(compile(program, "events.md", "exec"), named)
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(named["TABLES"])
    take, taken = named["take"], []

    def counted(*given: Any) -> None:
        take(*given)
        taken.append(given)

    named["take"] = counted
    deadline = time.monotonic() + WAIT_S_MAX
    for group, wanted in (("one", EVENTS // 2), ("two", EVENTS // 2 + EVENTS)):
        named["run"](
            brokers, group, database, until=lambda wanted=wanted: len(taken) >= wanted or time.monotonic() > deadline
        )
    assert len(taken) == EVENTS // 2 + EVENTS
    found = set(database.execute("SELECT id, version FROM transactions"))
    database.close()
    named["registry"].close()
    return found
