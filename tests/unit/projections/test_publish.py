"""The publisher: in order, from the checkpoint, never behind a failed batch."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from projections.events.public_events import common_fields, transaction_event
from projections.model.unit_of_work import NetEvent
from projections.publish import browser_messages, publisher
from projections.publish.kafka_records import ChangesetEvents
from projections.publish.publisher import Committed, Publisher
from runtime.kafka.clients import InDoubt, Outgoing
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.errors import Retry
from schemas.topics import HEADER_POSITION
from tests.support.projections_log import START_US, transaction

WAIT_S_MAX = 10.0
OWN = b"o" * 16


def changeset(
    offset: int, *, partition: int = 0, count: int = 1, kind: str = events.TRANSACTION_ADDED
) -> ChangesetEvents:
    common = common_fields(tenant="t", user_id="u", item_id="A", known_at=START_US, changeset=b"c" * 16)
    net = []
    for number in range(count):
        payload = codec.encode(transaction(f"T{number}"))
        data = transaction_event(common, OWN, 1, payload, changed=[], previous=None)
        net.append(NetEvent(kind, catalogue.TRANSACTION_EVENT, OWN, data))
    return ChangesetEvents(partition, offset, b"c" * 16, 1, "A", START_US, net)


class Kafka:
    """An appender that keeps what it gets, and fails when told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, str]] = []
        self.failures: list[Exception] = []
        self.answers = asyncio.Event()
        self.answers.set()

    async def append_many(self, topic: str, partition: int, records: Sequence[Outgoing]) -> None:
        await self.answers.wait()
        if self.failures and topic == "x.transactions":
            self._keep(topic, partition, records[:1])  # a part of a batch may be in the log
            raise self.failures.pop(0)
        self._keep(topic, partition, records)

    def _keep(self, topic: str, partition: int, records: Sequence[Outgoing]) -> None:
        self.sent += [(topic, partition, dict(record.headers)[HEADER_POSITION].decode()) for record in records]

    def positions(self, topic: str = "x.transactions") -> list[str]:
        return [position for name, _, position in self.sent if name == topic]


class Table:
    """PublishedCheckpoints and stored changesets in memory."""

    def __init__(self) -> None:
        self.checkpoints: dict[int, int] = {}
        self.rows: list[ChangesetEvents] = []
        self.held_topics: dict[tuple[str, int], int] = {}
        self.away = 0
        self.refuses_checkpoints = False

    async def read_checkpoint(self, partition: int) -> int:
        self._fail()
        return self.checkpoints.get(partition, 0)

    async def read_changesets(self, partition: int, start: int, end: int) -> list[ChangesetEvents]:
        self._fail()
        rows = [row for row in self.rows if row.partition == partition and start <= row.offset < end]
        return rows[: publisher.ROWS_MAX]

    async def read_held_topics(self) -> dict[tuple[str, int], int]:
        self._fail()
        return dict(self.held_topics)

    async def store_checkpoints(self, checkpoints: Mapping[int, int]) -> None:
        if self.refuses_checkpoints:
            raise Retry("away")
        self.checkpoints.update(
            {number: max(at, self.checkpoints.get(number, 0)) for number, at in checkpoints.items()}
        )

    def _fail(self) -> None:
        if self.away:
            self.away -= 1
            raise Retry("away")


class World:
    def __init__(self) -> None:
        self.kafka, self.table = Kafka(), Table()
        self.publisher = Publisher(self.kafka, self.table, topic_prefix="x.")  # type: ignore[arg-type]

    def commit(self, start: int, *outbound: ChangesetEvents, end: int | None = None, partition: int = 0) -> None:
        self.publisher.submit(Committed({partition: (start, start + 1 if end is None else end)}, outbound))


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(publisher, "RETRY_S_MIN", 0.001)
    monkeypatch.setattr(publisher, "IDLE_S", 0.01)
    made = World()
    running = asyncio.create_task(made.publisher.run())
    yield made
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_batches_are_sent_in_the_order_handed_over(world: World) -> None:
    for offset in range(5):
        world.commit(offset, changeset(offset))
    await world.publisher.drain()

    assert world.kafka.positions() == ["0.0", "1.0", "2.0", "3.0", "4.0"]
    assert world.kafka.positions("x.push") == world.kafka.positions()
    assert world.table.checkpoints == {0: 5}


async def test_a_held_partition_of_a_topic_is_left_out_and_the_others_go_on(world: World) -> None:
    world.table.held_topics = {("transactions", 0): 0}
    world.commit(0, changeset(0))
    await world.publisher.drain()
    world.table.held_topics.clear()
    world.commit(1, changeset(1))
    await world.publisher.drain()

    assert world.kafka.positions() == ["1.0"]
    assert world.kafka.positions("x.push") == ["0.0", "1.0"]
    assert world.table.checkpoints == {0: 2}


async def test_what_was_committed_before_a_hold_is_sent_though_it_is_late(world: World) -> None:
    world.table.held_topics = {("transactions", 0): 1}
    world.commit(0, changeset(0), changeset(1), end=2)
    await world.publisher.drain()

    assert world.kafka.positions() == ["0.0"]
    assert world.kafka.positions("x.push") == ["0.0", "1.0"]
    assert world.table.checkpoints == {0: 2}


async def test_a_failed_batch_is_sent_again_before_what_follows_it(world: World) -> None:
    world.kafka.failures = [InDoubt("no answer"), InDoubt("no answer")]
    world.commit(0, changeset(0, count=2))
    world.commit(1, changeset(1))
    await world.publisher.drain()

    assert world.kafka.positions() == ["0.0", "0.0", "0.0", "0.1", "1.0"]
    # Only the lane that failed begins again.
    assert world.kafka.positions("x.push") == ["0.0", "0.1", "1.0"]


async def test_a_checkpoint_is_raised_only_after_the_answer(world: World) -> None:
    world.kafka.answers.clear()
    world.commit(0, changeset(0))
    await asyncio.sleep(0)
    assert world.publisher.unstored_checkpoints() == {}

    world.kafka.answers.set()
    async with asyncio.timeout(WAIT_S_MAX):
        while world.table.checkpoints != {0: 1}:  # stored by itself when nothing more comes
            await asyncio.sleep(0.001)


async def test_a_checkpoint_that_was_not_stored_is_stored_later(world: World) -> None:
    world.table.refuses_checkpoints = True
    world.commit(0, changeset(0))
    await world.publisher.drain()
    unstored = world.publisher.unstored_checkpoints()

    world.table.refuses_checkpoints = False
    await world.publisher.drain()

    assert unstored == {0: 1}
    assert world.table.checkpoints == {0: 1}


async def test_a_start_goes_on_above_the_checkpoint_from_the_table(world: World) -> None:
    world.table.checkpoints = {0: 2}
    world.table.rows = [changeset(offset) for offset in range(5)]
    world.table.away = 3

    world.commit(5, end=5)
    world.commit(5, changeset(5))
    await world.publisher.drain()

    assert world.kafka.positions() == ["2.0", "3.0", "4.0", "5.0"]
    assert world.table.checkpoints == {0: 6}


async def test_a_resume_reads_the_table_page_by_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "ROWS_MAX", 2)
    world.table.rows = [changeset(offset) for offset in (0, 3, 4, 8, 9)]

    world.commit(10, end=10)
    await world.publisher.drain()

    assert world.kafka.positions() == ["0.0", "3.0", "4.0", "8.0", "9.0"]


async def test_what_another_process_committed_in_between_is_published_too(world: World) -> None:
    world.commit(0, changeset(0))
    world.table.rows = [changeset(offset) for offset in range(3)]
    world.commit(3, changeset(3))
    await world.publisher.drain()

    assert world.kafka.positions() == ["0.0", "1.0", "2.0", "3.0"]


async def test_a_partition_that_comes_back_after_others_had_it_begins_above_their_floor(world: World) -> None:
    world.commit(0, changeset(0))
    await world.publisher.drain()
    world.table.checkpoints = {0: 50}
    world.table.rows = [changeset(offset) for offset in range(60)]

    world.commit(60, end=60)
    await world.publisher.drain()

    assert world.kafka.positions() == ["0.0", *(f"{offset}.0" for offset in range(50, 60))]


async def test_the_projector_waits_while_too_much_is_unpublished(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "WAITING_BYTES_MAX", 1_000)
    world.kafka.answers.clear()
    world.commit(0, changeset(0, count=10))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(world.publisher.wait_for_room(), 0.05)

    world.kafka.answers.set()
    await asyncio.wait_for(world.publisher.wait_for_room(), WAIT_S_MAX)


@pytest.mark.parametrize(("count", "expected"), [(100, 100), (101, 1)])
def test_many_events_of_a_changeset_are_one_message(count: int, expected: int) -> None:
    outbound = changeset(7, count=count, kind=events.TRANSACTION_MODIFIED)

    messages = list(browser_messages.build_messages(outbound.net_events, item_id="A", known_at=START_US))

    assert len(messages) == expected
    assert messages[-1].event_index == count - 1
    if expected == 1:
        assert json.loads(messages[0].value) == {
            "event": "transactions.changed",
            "timestamp": "2025-10-09T08:53:20.000000Z",
            "data": {"item_id": "A", "added": 0, "modified": count, "removed": 0},
        }
