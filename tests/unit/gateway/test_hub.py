"""Each browser gets what its snapshot lacks, once and in order, or is told to begin anew."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.live import hub as hubs
from gateway.live.hub import GOING_AWAY, POLICY, RESTART, TRY_LATER, Hub, Position, StreamEnd, StreamRefused, Subscriber

VALUE = b'{"event":"transaction.added","data":{},"timestamp":"2026-01-01T00:00:00Z"}'


def opened() -> Hub:
    hub = Hub()
    hub.open()
    return hub


def send(hub: Hub, offset: int, event: int = 0, *, user: int = 1, partition: int = 0, value: bytes = VALUE) -> None:
    hub.dispatch(partition=partition, position=Position(offset, event), user=user, value=value)


def waiting(subscriber: Subscriber) -> list[str]:
    """Positions of what would be sent next."""
    return [json.loads(text)["position"] for _, text in subscriber._queue]


async def test_a_message_reaches_all_streams_of_its_user_and_nobody_elses() -> None:
    hub = opened()
    first, second, other = hub.join(1), hub.join(1), hub.join(2)
    for subscriber in (first, second, other):
        subscriber.begin(0)

    send(hub, 5, user=1)

    assert await first.next() == await second.next()
    assert waiting(other) == []


async def test_the_position_is_added_to_the_message() -> None:
    hub = opened()
    subscriber = hub.join(1)
    subscriber.begin(0)

    send(hub, 7, 3, partition=2)

    assert json.loads(await subscriber.next()) == {**json.loads(VALUE), "position": "2:7.3"}


async def test_what_the_snapshot_shows_is_dropped_and_what_came_meanwhile_is_kept() -> None:
    hub = opened()
    early, late = hub.join(1), hub.join(1)
    for offset in (8, 9, 10, 11):
        send(hub, offset)

    early.begin(10)
    late.begin(14)
    for offset in (12, 13, 14):
        send(hub, offset)

    assert waiting(early) == ["0:10.0", "0:11.0", "0:12.0", "0:13.0", "0:14.0"]
    assert waiting(late) == ["0:14.0"]


async def test_nothing_is_sent_before_the_snapshot() -> None:
    hub = opened()
    subscriber = hub.join(1)
    send(hub, 1)
    first = asyncio.create_task(subscriber.next())
    await asyncio.sleep(0)
    assert not first.done()

    subscriber.begin(0)

    assert "0:1.0" in await first


async def test_a_repeat_is_dropped_for_those_who_joined_after_it_too() -> None:
    hub = opened()
    send(hub, 5)
    send(hub, 6)
    subscriber = hub.join(1)
    subscriber.begin(0)

    send(hub, 5)
    send(hub, 6)
    send(hub, 6, 1)
    send(hub, 5, partition=1)

    assert waiting(subscriber) == ["0:6.1", "1:5.0"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=60))
def test_positions_of_a_stream_only_rise(sent: list[tuple[int, int]]) -> None:
    async def play() -> list[str]:
        hub = opened()
        subscriber = hub.join(1)
        subscriber.begin(0)
        for offset, event in sent:
            send(hub, offset, event)
        return waiting(subscriber)

    got = [tuple(map(int, where[2:].split("."))) for where in asyncio.run(play())]

    assert got == sorted(set(got))


async def test_a_slow_browser_is_cut_at_its_bound_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "QUEUE_MESSAGES_MAX", 3)
    hub = opened()
    slow, quick = hub.join(1), hub.join(1)
    slow.begin(0)
    quick.begin(0)

    for offset in range(5):
        send(hub, offset)
        await quick.next()

    assert slow.ended_with == StreamEnd(TRY_LATER, "too slow: connect again for a new snapshot")
    assert (await slow.ended()).code == TRY_LATER
    assert waiting(slow) == []
    assert quick.ended_with is None


async def test_a_queue_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "QUEUE_BYTES_MAX", 250)
    hub = opened()
    subscriber = hub.join(1)
    subscriber.begin(0)

    for offset in range(3):
        send(hub, offset)

    assert subscriber.ended_with is not None


async def test_streams_of_one_user_and_of_the_process_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "STREAMS_PER_USER_MAX", 2)
    monkeypatch.setattr(hubs, "STREAMS_MAX", 3)
    hub = opened()
    first = hub.join(1)
    hub.join(1)

    with pytest.raises(StreamRefused) as too_many:
        hub.join(1)
    hub.join(2)
    with pytest.raises(StreamRefused) as full:
        hub.join(3)
    hub.leave(first)
    hub.leave(first)
    hub.join(3)

    assert (too_many.value.end.code, full.value.end.code) == (POLICY, TRY_LATER)
    assert hub._count == 3


async def test_when_the_hub_closes_all_are_told_and_nobody_joins_until_it_is_open() -> None:
    hub = opened()
    subscriber = hub.join(1)
    subscriber.begin(0)
    send(hub, 50)

    hub.close(StreamEnd(RESTART, "anew"))
    with pytest.raises(StreamRefused) as full:
        hub.join(1)
    hub.leave(subscriber)
    hub.open()
    later = hub.join(1)
    later.begin(0)
    send(hub, 7)

    assert (await subscriber.ended()).code == RESTART
    assert full.value.end.code == RESTART
    assert waiting(later) == ["0:7.0"]


async def test_a_stream_that_ended_takes_nothing_and_keeps_its_first_reason() -> None:
    hub = opened()
    subscriber = hub.join(1)
    hub.end_user(1, StreamEnd(RESTART, "first"))
    hub.close(StreamEnd(GOING_AWAY, "second"))

    send(hub, 1)

    assert subscriber.ended_with == StreamEnd(RESTART, "first")
    assert waiting(subscriber) == []
