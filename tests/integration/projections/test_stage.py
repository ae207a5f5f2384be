"""The stage on a real Kafka and a real Postgres: from a changeset in the log to rows, topics and pushes."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from projections import app
from projections.store.migrate import migrate
from projections.store.tables import SCHEMA
from projections.verify import digests
from runtime.incidents import dead_letters
from runtime.kafka import topics as cluster
from runtime.kafka.clients import Appender, Outgoing, connection, partition_of
from runtime.lifecycle import Running
from runtime.settings import Settings
from runtime.users.keys import FIRST_GENERATION
from runtime.users.vault import Vault
from schemas.encoding import codec
from schemas.log.records import DeadLetter
from schemas.topics import (
    BALANCES,
    CHANGESETS,
    DEAD_LETTERS,
    HEADER_POSITION,
    ITEMS,
    PUSH,
    TRANSACTIONS,
    Topic,
    full_name,
)
from tests.support.projections_log import Log, account, added, balance, modified, removed, transaction

KEY = bytes(range(32))
PARTITIONS = 2
WAIT_S_MAX = 30.0
USERS = frozenset({"notes", "tags", "display_date", "hidden", "splits", "splits_stale", "user_fields", "bank"})
"""Fields of a push that users own, or have beside them: see test_gateway_edits."""


class World(NamedTuple):
    """What a test has: settings, the log's writer, the tables."""

    settings: Settings
    appender: Appender
    tables: asyncpg.Connection

    async def append(self, log: Log) -> None:
        """Append what the log has and the topic has not, keyed by user."""
        for record in log.records:
            assert record.key is not None
            await self.appender.append(
                full_name(CHANGESETS, self.settings.topic_prefix), Outgoing(record.key, record.value)
            )
        log.records.clear()

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait for a condition, with a bound."""
        deadline = time.monotonic() + WAIT_S_MAX
        while not await condition():
            assert time.monotonic() < deadline, "too late"
            await asyncio.sleep(0.02)

    async def until_projected(self, count: int) -> None:
        """Wait until so many records lie below the positions and their events were published."""
        query = """SELECT (SELECT sum(position) FROM reads.positions) = $1
                      AND (SELECT sum(published) FROM tartan.published_checkpoints) = $1"""

        async def done() -> bool:
            return bool(await self.tables.fetchval(query, count))

        await self.until(done)

    async def read(self, topic: Topic) -> list[tuple[dict[str, str], bytes | None, bytes]]:
        """All records of a topic: headers, key, value, partition by partition."""
        return [(_headers(record), record.key, record.value) for record in await self._records(topic)]

    async def read_places(self, topic: Topic) -> list[tuple[int, dict[str, str]]]:
        """Partition and headers of all records of a topic, in order."""
        return [(record.partition, _headers(record)) for record in await self._records(topic)]

    async def _records(self, topic: Topic) -> list[Any]:
        consumer = AIOKafkaConsumer(
            group_id=None, auto_offset_reset="none", enable_auto_commit=False, **connection(self.settings)
        )
        await consumer.start()
        found: list[Any] = []
        try:
            for number in range(PARTITIONS):
                where = TopicPartition(full_name(topic, self.settings.topic_prefix), number)
                end = (await consumer.end_offsets([where]))[where]
                consumer.assign([where])
                consumer.seek(where, 0)
                while await consumer.position(where) < end:
                    found += (await consumer.getmany(where, timeout_ms=500)).get(where, [])
        finally:
            await consumer.stop()
        return found


def _headers(record: Any) -> dict[str, str]:
    return {name: value.decode() for name, value in record.headers}


@pytest.fixture
async def world(kafka_address: str, topic_prefix: str, database: str) -> AsyncIterator[World]:
    settings = Settings(
        kafka_address=kafka_address,
        topic_prefix=topic_prefix,
        postgres_dsn=database,
        partitions=PARTITIONS,
        key_encryption_key=base64.b64encode(KEY).decode(),
        instance_id="1",
    )  # type: ignore[arg-type]
    await asyncio.to_thread(migrate, database)
    await cluster.apply(settings)
    tables = await asyncpg.connect(database, server_settings={"search_path": SCHEMA})
    for user in (1, 2, 3):
        wrapped = Vault(KEY).wrap_data_key(user.to_bytes(32, "big"), user=user, generation=FIRST_GENERATION)
        await tables.execute(
            "INSERT INTO tartan.users (user_number, tenant, user_id) VALUES ($1, 't', $2)", user, f"u{user}"
        )
        await tables.execute(
            "INSERT INTO tartan.user_keys (user_number, generation, wrapped, state) VALUES ($1, 1, $2, 'active')",
            user,
            wrapped,
        )
    appender = Appender(settings, client="test")
    await appender.start()
    yield World(settings, appender, tables)
    await appender.stop()
    await tables.close()


@asynccontextmanager
async def projecting(world: World) -> AsyncIterator[Running]:
    async with app.stage(world.settings) as running:
        ended = asyncio.ensure_future(running.ended)
        yield running
        assert not ended.done() or ended.exception() is None


async def test_a_changeset_becomes_rows_a_ledger_events_and_pushes(world: World) -> None:
    log = Log()
    log.link("A", 1, *balance(account()))
    log.sync("A", *added(transaction("P", "40", pending=True)))
    log.sync("A", *removed("P"), *added(transaction("T", "48", pending_transaction_id="P")))
    log.sync("A", *modified(transaction("T", "48", pending_transaction_id="P")), *balance(account(current="52")))

    async with projecting(world):
        await world.append(log)
        await world.until_projected(4)

    row = await world.tables.fetchrow("SELECT *, encode(own_id, 'hex') AS own FROM reads.transactions")
    assert (row["transaction_id"], row["amount"], row["pending"], row["version"], row["transfers"]) == (
        "T",
        48,
        False,
        2,
        3,
    )
    assert await digests.ledger_problems(world.tables) == []
    balances = await world.tables.fetch("SELECT kind, layer, balance FROM reads.ledger_balances ORDER BY kind, layer")
    assert [tuple(one) for one in balances] == [
        ("bank", "pending", 0),
        ("bank", "posted", -48),
        ("category", "pending", 0),
        ("category", "posted", 48),
    ]
    published = await world.read(TRANSACTIONS)
    assert [(headers["ce_type"], headers[HEADER_POSITION], key) for headers, key, _ in published] == [
        ("transaction.added", "1.0", row["own"].encode()),
        ("transaction.modified", "2.0", row["own"].encode()),
    ]
    assert len({headers["ce_id"] for headers, _, _ in published}) == 2
    assert [headers["ce_type"] for headers, _, _ in await world.read(ITEMS)] == ["item.linked"]
    assert [headers[HEADER_POSITION] for headers, _, _ in await world.read(BALANCES)] == ["0.1", "3.0"]
    pushed = [(headers[HEADER_POSITION], key, json.loads(value)) for headers, key, value in await world.read(PUSH)]
    assert [(position, message["event"]) for position, _, message in pushed] == [
        ("0.0", "item.linked"),
        ("0.1", "balance.updated"),
        ("1.0", "transaction.added"),
        ("2.0", "transaction.modified"),
        ("3.0", "balance.updated"),
    ]
    assert {key for _, key, _ in pushed} == {b"1"}
    assert {name: value for name, value in pushed[3][2]["data"].items() if name not in USERS} == {
        "id": row["own"],
        "version": 2,
        "account_id": "checking",
        "amount": "48",
        "currency": "USD",
        "date": "2026-03-01",
        "name": "Coffee Shop",
        "merchant_name": "Coffee",
        "category": "FOOD_AND_DRINK",
        "category_detailed": "FOOD_AND_DRINK_COFFEE",
        "logo_url": None,
        "pending": False,
        "changed": ["transaction_id", "amount", "pending", "pending_transaction_id"],
    }


async def test_an_event_is_in_the_partition_of_its_changeset(world: World) -> None:
    log = Log()
    for user in (1, 2, 3):
        log.link(f"item{user}", user)
        log.sync(f"item{user}", *added(transaction("T")), user=user)

    async with projecting(world):
        await world.append(log)
        await world.until_projected(6)

    wanted = [partition_of(str(user).encode(), PARTITIONS) for user in (1, 2, 3)]
    places = await world.tables.fetch("SELECT user_number, partition FROM reads.items ORDER BY 1")
    assert [row["partition"] for row in places] == wanted
    assert len(await world.read(TRANSACTIONS)) == 3


async def test_poison_quarantines_its_item_and_the_others_go_on(world: World) -> None:
    log = Log()
    for item, user in (("null", 1), ("huge", 1), ("sealed", 1), ("well", 2)):
        log.link(item, user)
    log.sync("null", *added(transaction("n", name="a\x00b")))
    log.sync("huge", *added(transaction("h", "92233720368547758080")))
    log.append("sealed", added(transaction("s")), keys=Log.stranger())
    log.sync("well", *added(transaction("w")), user=2)
    log.sync("null", *added(transaction("n2")))

    async with projecting(world):
        await world.append(log)
        await world.until_projected(9)

    assert [
        row["transaction_id"] for row in await world.tables.fetch("SELECT transaction_id FROM reads.transactions")
    ] == ["w"]
    quarantined = await world.tables.fetch("SELECT item_id, reason FROM tartan.quarantines ORDER BY 1")
    assert [row["item_id"] for row in quarantined] == ["huge", "null", "sealed"]
    assert all("a\x00b" not in row["reason"] for row in quarantined)
    withheld = await world.tables.fetch("SELECT item_id FROM projection.withheld ORDER BY item_id, source_offset")
    assert [row["item_id"] for row in withheld] == ["huge", "null", "null", "sealed"]


async def test_each_quarantine_is_told_on_the_topic_of_dead_letters(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "EVERY_S", 0.1)
    log = Log()
    log.link("A", 1)
    sealed = log.append("A", added(transaction("s")), keys=Log.stranger())

    async def told() -> bool:
        query = "SELECT count(*) FROM tartan.dead_letters WHERE published_at IS NOT NULL"
        return bool(await world.tables.fetchval(query))

    async with projecting(world):
        await world.append(log)
        await world.until(told)

    [(_, key, value)] = await world.read(DEAD_LETTERS)
    letter = codec.decode(DeadLetter, value)
    assert (key, letter.value, letter.item_id, letter.source_offset) == (b"1", sealed.value, "A", 1)


async def test_a_redrive_publishes_what_was_withheld_at_its_own_place(world: World) -> None:
    log = Log()
    log.link("A", 1)
    log.sync("A", *added(transaction("T")), *balance(account()))
    log.sync("A", *modified(transaction("T", "11")))
    await world.tables.execute(
        "INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader)"
        " VALUES ('A', 1, $1, 'an older code could not', 'projections')",
        partition_of(b"1", PARTITIONS),
    )
    await world.append(log)
    async with projecting(world):
        await world.until_projected(3)
        assert await world.tables.fetchval("SELECT count(*) FROM reads.transactions") == 0

        log.redrive("A")
        await world.append(log)
        await world.until_projected(4)

    published = await world.read(TRANSACTIONS)
    assert [(headers["ce_type"], headers[HEADER_POSITION]) for headers, _, _ in published] == [
        ("transaction.added", "3.0"),
        ("transaction.modified", "3.2"),
    ]
    assert [headers[HEADER_POSITION] for headers, _, _ in await world.read(BALANCES)] == ["3.1"]
    assert [headers[HEADER_POSITION] for headers, _, _ in await world.read(PUSH)] == ["0.0", "3.0", "3.1", "3.2"]
    assert await digests.ledger_problems(world.tables) == []


async def test_transfers_can_only_be_inserted(world: World) -> None:
    for statement in ("UPDATE projection.ledger_transfers SET amount = 1", "DELETE FROM projection.ledger_transfers"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await world.tables.execute(statement)


async def test_what_was_committed_and_not_published_is_published_at_the_next_start(world: World) -> None:
    log = Log()
    log.link("A", 1)
    log.sync("A", *added(transaction("T")))
    async with projecting(world):
        await world.append(log)
        await world.until_projected(2)
    before = await world.read(TRANSACTIONS)

    await world.tables.execute(
        "UPDATE tartan.published_checkpoints SET published = 0"
    )  # as a crash between COMMIT and the sends leaves it
    async with projecting(world):
        await world.until_projected(2)

    after = await world.read(TRANSACTIONS)
    assert after == before + before  # the reader's rule drops the second


async def test_a_start_forgets_events_that_no_topic_has_any_more(world: World) -> None:
    log = Log()
    log.link("A", 1)
    log.sync("A", *added(transaction("T")))
    await world.append(log)
    async with projecting(world):
        await world.until_projected(2)
    await world.tables.execute(
        "UPDATE projection.changesets SET known_at = now() - interval '31 days' * (1 - source_offset)"
    )

    async def forgotten() -> bool:
        return bool(await world.tables.fetchval("SELECT count(*) = 1 FROM reads.changesets WHERE events IS NULL"))

    async with projecting(world):
        await world.until(forgotten)
