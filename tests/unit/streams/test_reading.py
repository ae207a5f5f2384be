"""Reading a log on: what lies below a position is passed over, a gap or another log is Halt."""

import asyncio
from collections.abc import Collection, Iterable, Mapping

import pytest

from runtime.kafka import continuity
from runtime.kafka.clients import Ends
from runtime.kafka.continuity import LogContinuity, checksum
from runtime.kafka.reader import GatheringReader, Position, Received, unread
from schemas.errors import Halt, Retry


def record(partition: int, offset: int, value: bytes = b"v") -> Received:
    return Received(partition, offset, None, value, {}, 0)


def test_what_was_dealt_with_is_passed_over() -> None:
    records = [record(0, 3), record(0, 4), record(1, 0), record(0, 5)]

    assert unread(records, {0: 4, 1: 0}) == [record(0, 4), record(1, 0), record(0, 5)]
    assert unread(records[:2], {0: 9}) == []


def test_a_record_given_twice_is_dealt_with_once() -> None:
    assert unread([record(0, 0), record(0, 0), record(0, 1)], {}) == [record(0, 0), record(0, 1)]


def test_a_gap_is_halt() -> None:
    with pytest.raises(Halt, match="continues at 5, expected 4"):
        unread([record(0, 5)], {0: 4})


async def test_a_reader_gathers_what_waits_up_to_its_bounds_and_acknowledges_in_order() -> None:
    reader = GatheringReader(records_max=2, bytes_max=100)
    done: list[int] = []
    for offset in range(3):
        await reader.offer(record(0, offset), lambda offset=offset: done.append(offset))  # type: ignore[misc]

    first = await reader.take()
    second = await reader.take()
    reader.acknowledge(first)
    reader.acknowledge(second)

    assert [len(first), len(second)] == [2, 1]
    assert done == [0, 1, 2]


class Memory:
    """A log of one partition that begins at `start`."""

    def __init__(self, values: list[bytes], *, start: int = 0) -> None:
        self._values = values
        self._start = start
        self.away = 0

    async def ends(self, topic: str, partitions: Iterable[int]) -> dict[int, Ends]:
        if self.away:
            self.away -= 1
            raise Retry("no Kafka")
        return {number: Ends(self._start, self._start + len(self._values)) for number in partitions}

    async def record(self, topic: str, partition: int, offset: int) -> bytes | None:
        return self._values[offset - self._start]


def witnessed(log: Memory, position: Mapping[int, Position]) -> LogContinuity:
    async def load(partitions: Collection[int]) -> Mapping[int, Position]:
        return {number: position[number] for number in partitions if number in position}

    return LogContinuity(log, topic="changesets", reader="test", load=load)


async def test_a_reader_starts_behind_what_it_has_read_or_at_the_very_beginning() -> None:
    log = Memory([b"a", b"b", b"c"])

    assert await witnessed(log, {0: Position(2, checksum(b"b"))}).starts([0, 1]) == {0: 2, 1: 0}


@pytest.mark.parametrize(
    ("log", "position", "message"),
    [
        (Memory([b"a", b"x", b"c"]), Position(2, checksum(b"b")), "another log"),
        (Memory([b"a"]), Position(2, checksum(b"b")), "truncated"),
        (Memory([], start=0), Position(2, checksum(b"b")), "truncated"),
        (Memory([b"d"], start=3), Position(2, checksum(b"b")), "incomplete"),
        (Memory([b"d"], start=3), Position(0), "incomplete"),
    ],
)
async def test_a_log_that_is_not_the_one_that_was_read_is_halt(log: Memory, position: Position, message: str) -> None:
    with pytest.raises(Halt, match=message):
        await witnessed(log, {0: position}).starts([0])


async def test_a_log_that_lost_its_beginning_is_halt_for_a_new_reader() -> None:
    with pytest.raises(Halt, match="incomplete"):
        await witnessed(Memory([b"d"], start=3), {}).starts([0])


async def test_a_log_whose_old_end_was_cut_off_behind_the_reader_is_read_on() -> None:
    assert await witnessed(Memory([], start=2), {0: Position(2, checksum(b"b"))}).starts([0]) == {0: 2}


async def test_a_moment_without_kafka_is_sat_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuity, "WAIT_S", 0.0)
    log = Memory([b"a"])
    log.away = 2

    assert await witnessed(log, {}).starts([0]) == {0: 0}

    log.away = 99
    with pytest.raises(Retry):
        await witnessed(log, {}).starts([0])


async def test_a_source_that_ceases_to_deliver_is_halt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuity, "CHECK_INTERVAL_S", 0.001)
    log = Memory([b"0", b"1", b"2"])

    with pytest.raises(Halt, match=r"is not given what follows in changesets, partitions \[0\]"):
        await asyncio.wait_for(
            witnessed(log, {0: Position(2, checksum(b"1"))}).watch(lambda: [0], unacknowledged=set), 5
        )


async def test_a_reader_with_records_in_hand_or_none_to_read_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuity, "CHECK_INTERVAL_S", 0.001)
    log = Memory([b"0", b"1", b"2"])
    busy, at_end = Position(2, checksum(b"1")), Position(3, checksum(b"2"))

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(witnessed(log, {0: busy}).watch(lambda: [0], unacknowledged=lambda: {0}), 0.1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(witnessed(log, {0: at_end}).watch(lambda: [0], unacknowledged=set), 0.1)


async def test_what_a_reader_has_in_hand_is_told_until_it_is_acknowledged() -> None:
    reader = GatheringReader(records_max=1, bytes_max=100)
    await reader.offer(record(3, 0), lambda: None)
    await reader.offer(record(5, 0), lambda: None)

    taken = await reader.take()
    assert reader.unacknowledged() == {3, 5}
    reader.acknowledge(taken)
    assert reader.unacknowledged() == {5}
