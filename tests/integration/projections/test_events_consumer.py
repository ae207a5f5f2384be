"""A consumer made of nothing but what docs/events.md shows keeps a table equal to ours, whatever the publisher does."""

import asyncio
import json
import random
import re
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from projections.events import public_events
from projections.store.rows import decompress
from runtime.crash_points import CrashPoint
from schemas.encoding import codec
from schemas.ids import own_id
from schemas.log.records import Transaction
from schemas.topics import TRANSACTIONS as TOPIC
from schemas.topics import full_name
from tests.integration.projections.test_crash import processes, run  # noqa: F401
from tests.integration.projections.test_publisher_kills import Life
from tests.integration.projections.test_stage import World, world  # noqa: F401
from tests.support.gateway_world import serving_api

DOCUMENT = Path("docs/events.md")
GATEWAY, TOPIC_OF_DOCUMENT = "http://127.0.0.1:8080", "tartan.transactions"
RECORDS = 20
DEATHS = (f"{CrashPoint.PUBLISH_BETWEEN_TOPICS}:7", f"{CrashPoint.PUBLISH_AFTER_SEND}:3")
FIELDS = ("id", "version", "user_id", "account_id", "amount", "currency", "pending", "date", "name", "user_fields")


def program(*, gateway: str, topic: str) -> dict[str, Any]:
    """What the document's program defines: decoding with a registry, and the table of transactions."""
    shown = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    with_registry, table = (next(code for code in shown if word in code) for word in ("AvroDeserializer", "def run("))
    assert GATEWAY in with_registry
    assert TOPIC_OF_DOCUMENT in table
    defined: dict[str, Any] = {}
    for code in (with_registry.replace(GATEWAY, gateway), table.replace(TOPIC_OF_DOCUMENT, topic)):
        exec(compile(code, DOCUMENT, "exec"), defined)
    return defined


class Reading:
    """The document's program at work in a thread of its own, and what it has seen of each transaction last."""

    def __init__(self, world: World, folder: Path, gateway: str) -> None:
        self.events: dict[str, Any] = {}
        self._path = folder / "table.sqlite"
        self._ends = threading.Event()
        self._program = program(gateway=gateway, topic=full_name(TOPIC, world.settings.topic_prefix))
        decoded = self._program["decoded"]

        def keeping(message: Any) -> Any:
            event = decoded(message)
            self.events[event["id"]] = event
            return event

        self._program["decoded"] = keeping
        self._thread = threading.Thread(target=self._run, args=(world.settings.kafka_address,))

    def begin(self) -> None:
        with closing(self._database()) as database:
            database.executescript(self._program["TABLES"])
        self._thread.start()

    def end(self) -> None:
        self._ends.set()
        self._thread.join()
        self._program["registry"].__exit__(None, None, None)

    def positions(self) -> dict[int, tuple[int, int]]:
        """Partition to the changeset and number of the last event that was taken."""
        rows = self._rows("SELECT partition, source_offset, place FROM positions")
        return {partition: (offset, place) for partition, offset, place in rows}

    def table(self) -> dict[str, tuple[Any, ...]]:
        """Id to row."""
        return {row[0]: row for row in self._rows(f"SELECT {', '.join(FIELDS)} FROM transactions")}

    def _rows(self, query: str) -> list[Any]:
        with closing(self._database()) as database:
            return database.execute(query).fetchall()

    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None)

    def _run(self, brokers: str) -> None:
        with closing(self._database()) as database:
            self._program["run"](brokers, "another-team", database, until=self._ends.is_set)


@pytest.fixture
async def reading(world: World, database: str, tmp_path: Path) -> AsyncIterator[Reading]:
    async with serving_api(database) as api:
        reading = Reading(world, tmp_path, api.address)
        await asyncio.to_thread(reading.begin)
        yield reading
        await asyncio.to_thread(reading.end)


async def test_a_consumer_written_from_the_document_has_our_table_whatever_becomes_of_the_publisher(
    world: World, reading: Reading, processes: list[asyncio.subprocess.Process]
) -> None:
    life = Life(random.Random(1))
    for death in DEATHS:
        life.go_on(RECORDS)
        await world.append(life.log)
        processes.append(await run(world, death))
        assert await asyncio.wait_for(processes[-1].wait(), 60) == -9
    life.log.edit("item1", own_id("T3-1", salt=b"item1"), "T3-1", notes="shared with Bob")
    life.go_on(RECORDS)
    await world.append(life.log)
    processes.append(await run(world, None))
    await world.until_projected(life.count + 1)

    last = {}
    for partition, offset, compressed in await world.tables.fetch(LAST):
        kinds = [event.type for event in public_events.decode_block(decompress(compressed))]
        # A changeset may have several events: the reader is done with the last one.
        last[partition] = (offset, max(place for place, kind in enumerate(kinds) if kind.startswith("transaction.")))
    await world.until(lambda: reached(reading, last))

    ours = {row["id"]: row for row in await world.tables.fetch(OURS)}
    assert len(ours) > RECORDS
    assert {name: shown(row) for name, row in ours.items()} == {
        name: (*row[:-1], json.loads(row[-1] or "{}")) for name, row in reading.table().items()
    }
    for name, row in ours.items():
        payload = msgspec.to_builtins(codec.decode(Transaction, row["payload"]))
        event = reading.events[name]
        assert (payload, row["item_id"]) == (event["transaction"], event["item_id"])


def shown(row: Any) -> tuple[Any, ...]:
    users = {name: said["value"] for name, said in json.loads(row["user_fields"] or "{}").items()}
    return (*(row[name] for name in FIELDS[:-1]), users)


async def reached(reading: Reading, last: dict[int, tuple[int, int]]) -> bool:
    positions = await asyncio.to_thread(reading.positions)
    return all(positions.get(partition, (-1, 0)) >= position for partition, position in last.items())


OURS = """
SELECT encode(own_id, 'hex') AS id, version, u.user_id, account_id, amount::text AS amount, currency,
       pending::int AS pending, date::text AS date, name, user_fields, payload, t.item_id
  FROM reads.transactions t JOIN tartan.users u USING (user_number)
 WHERE removed_at IS NULL"""

LAST = """
SELECT c.partition, c.source_offset, c.events FROM projection.changesets c JOIN (
       SELECT i.partition, max(t.last_changeset) AS last
         FROM reads.transactions t JOIN reads.items i USING (item_id) GROUP BY 1) AS newest
    ON c.partition = newest.partition AND c.source_offset = newest.last"""
