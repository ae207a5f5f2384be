"""Simulate Kafka in memory: append-only partitions, consumer groups, and appends whose answer may be missing."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from runtime.kafka.clients import Appended, InDoubt, Outgoing
from runtime.kafka.reader import GatheringReader, Received
from sandbox.simulation.engine.loop import Process
from sandbox.simulation.engine.network import Connection, ProcessFaults
from schemas.errors import Retry

APPEND_S_MAX = 30.0
"""Timeout of an append, as in runtime.kafka.clients."""
LATE_S_MAX = 120.0
"""Longest delay of a record whose append had no answer."""
BATCH_MAX = 50
"""Records that a reader gets at once: few, so that batches end at many places."""

OnAppended = Callable[[Process, Appended, Outgoing], None]
"""Receive each record whose append was answered."""
LoadPosition = Callable[[int], Awaitable[int]]
"""Read a reader's position in a partition from the database. Raises: Retry."""


class WakeUp:
    """Wake all waiting tasks. A task that checks its condition and then waits misses nothing: nothing runs between."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def notify(self) -> None:
        """Wake all tasks that wait now."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        """Wait for the next notification."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future


class Topic:
    """A topic. Shape: `records` by partition, each at the index of its offset."""

    def __init__(self, name: str, partitions: int) -> None:
        self.name = name
        self.records: list[list[Received]] = [[] for _ in range(partitions)]
        self.wake_up = WakeUp()

    def put(self, partition: int, record: Outgoing) -> int:
        """Append a record and return its offset."""
        records = self.records[partition]
        headers, timestamp_ms = dict(record.headers), record.timestamp_ms or 0
        records.append(Received(partition, len(records), record.key, record.value or b"", headers, timestamp_ms))
        self.wake_up.notify()
        return len(records) - 1

    def put_all(self, partition: int, records: Sequence[Outgoing]) -> Appended:
        """Append records and return the position of the last."""
        offset = -1
        for record in records:
            offset = self.put(partition, record)
        return Appended(partition, offset)

    def end(self, partition: int) -> int:
        """Return the next offset of a partition."""
        return len(self.records[partition])


class MissingAnswer(NamedTuple):
    """An append without an answer, and when its records are written. `lands_s` None: never."""

    lands_s: float | None
    waits_s: float


class Broker:
    """Hold all topics and their faults."""

    def __init__(self, rng: random.Random, faults: ProcessFaults, *, partitions: int) -> None:
        self._rng = rng
        self._faults = faults
        self._partitions = partitions
        self._topics: dict[str, Topic] = {}
        self.doubt_share = 0.0
        self.away_until = 0.0
        self.pending = 0

    def topic(self, name: str) -> Topic:
        """Return a topic; it is created at the first use."""
        if name not in self._topics:
            self._topics[name] = Topic(name, self._partitions)
        return self._topics[name]

    def check_available(self) -> None:
        """Raise Retry while no broker answers."""
        if asyncio.get_running_loop().time() < self.away_until:
            raise Retry("no broker answers")

    def draw_missing_answer(self) -> MissingAnswer | None:
        """Draw whether an append has no answer, and what happens to its records."""
        if self._rng.random() >= self.doubt_share:
            return None
        kind = self._rng.choice(("append_in_doubt_now", "append_in_doubt_later", "append_in_doubt_never"))
        self._faults.counts[kind] += 1
        waits_s = self._rng.choice((0.05, 2.0, APPEND_S_MAX))
        if kind.endswith("never"):
            return MissingAnswer(None, waits_s)
        return MissingAnswer(0.0 if kind.endswith("now") else waits_s + self._rng.random() * LATE_S_MAX, waits_s)


class BrokerClient:
    """Append records and read ends for one process: the port Log, and the Appender of a Publisher."""

    def __init__(
        self,
        broker: Broker,
        connection: Connection,
        *,
        topic: str = "changesets",
        on_appended: OnAppended = lambda *_: None,
    ) -> None:
        self._on_appended = on_appended
        self._broker = broker
        self._connection = connection
        self._topic = topic

    async def append(self, partition: int, key: bytes, value: bytes) -> int:
        """Append a record and return its offset. Raises: InDoubt, Retry."""
        topic, record = self._broker.topic(self._topic), Outgoing(key, value)

        async def put() -> Appended:
            appended = await self._put(topic, partition, [record])
            self._on_appended(self._connection.process, appended, record)
            return appended

        return (await self._connection.call_async(put)).offset

    async def end(self, partition: int) -> int:
        """Return the next offset of a partition. Raises: Retry."""

        def read() -> int:
            self._broker.check_available()
            return self._broker.topic(self._topic).end(partition)

        return await self._connection.call(read)

    async def append_many(self, topic: str, partition: int, records: Iterable[Outgoing]) -> None:
        """Append records of one partition in order. Raises: InDoubt, Retry."""
        batch = list(records)
        await self._connection.call_async(lambda: self._put(self._broker.topic(topic), partition, batch))

    async def _put(self, topic: Topic, partition: int, records: list[Outgoing]) -> Appended:
        self._broker.check_available()
        missing = self._broker.draw_missing_answer()
        if missing is None:
            return topic.put_all(partition, records)
        if missing.lands_s == 0.0:
            topic.put_all(partition, records)
        elif missing.lands_s is not None:
            self._broker.pending += 1
            asyncio.get_running_loop().call_later(missing.lands_s, self._put_late, topic, partition, records)
        await asyncio.sleep(missing.waits_s)
        raise InDoubt(f"an append to {topic.name} got no answer within {missing.waits_s:g} s")

    def _put_late(self, topic: Topic, partition: int, records: list[Outgoing]) -> None:
        self._broker.pending -= 1
        topic.put_all(partition, records)


class Group:
    """Assign a topic's partitions to processes. Each assignment of a partition has its own number."""

    def __init__(self, topic: Topic, rng: random.Random) -> None:
        self.topic = topic
        self._rng = rng
        self._members: list[Process] = []
        self._assignments: dict[Process, dict[int, int]] = {}
        self._last_number = 0

    def join(self, process: Process) -> None:
        """Add a process."""
        if process not in self._members:
            self._members.append(process)
            self.rebalance()

    def leave(self, process: Process) -> None:
        """Remove a process; it may live on, and sees its loss late."""
        if process in self._members:
            self._members.remove(process)
            self.rebalance()

    def rebalance(self) -> None:
        """Assign all partitions anew."""
        self._assignments = {member: {} for member in self._members}
        for partition in range(len(self.topic.records)):
            if self._members:
                self._last_number += 1
                self._assignments[self._rng.choice(self._members)][partition] = self._last_number
        self.topic.wake_up.notify()

    def assignment(self, process: Process) -> dict[int, int]:
        """Return the partitions of a process, each with the number of its assignment."""
        return self._assignments.get(process, {})


async def feed(
    group: Group, process: Process, reader: GatheringReader, load_position: LoadPosition, *, lag_s: Callable[[], float]
) -> None:
    """Offer a reader the records of its process's partitions from the reader's positions on, for ever."""
    positions: dict[int, tuple[int, int]] = {}
    """Assignment number and next offset by partition."""
    while True:
        assignment = group.assignment(process)
        for partition in [lost for lost in positions if assignment.get(lost) != positions[lost][0]]:
            del positions[partition]
        for partition in [new for new in assignment if new not in positions]:
            try:
                positions[partition] = (assignment[partition], await load_position(partition))
            except Retry:
                await asyncio.sleep(0.5)
        has_read = False
        for partition, (number, offset) in list(positions.items()):
            records = group.topic.records[partition][offset : offset + BATCH_MAX]
            for record in records:
                await reader.offer(record, _acknowledge)
            positions[partition] = (number, offset + len(records))
            has_read = has_read or bool(records)
        lag = lag_s()
        if lag:
            await asyncio.sleep(lag)
        elif not has_read and group.assignment(process) == {name: number for name, (number, _) in positions.items()}:
            await group.topic.wake_up.wait()


def _acknowledge() -> None:
    """Do nothing: positions are the database's, and an acknowledgement only feeds Kafka's lag displays."""
