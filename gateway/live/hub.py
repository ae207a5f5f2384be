"""Hub: one bounded queue for each subscriber, and the rule by which it gets each message exactly once.

A subscriber joins before its snapshot is read, so messages that arrive meanwhile wait in its queue. With the snapshot
come its position and `begin`: messages below that position, queued or still to come, are dropped.
"""

import asyncio
from collections import deque
from typing import NamedTuple

from gateway import metrics

QUEUE_MESSAGES_MAX = 1_000
QUEUE_BYTES_MAX = 1024 * 1024
"""Queue of one subscriber. A slower browser is disconnected and takes a new snapshot; a longer queue would only hold
older messages, and 10,000 slow browsers would need 10 GiB."""
STREAMS_PER_USER_MAX = 20
"""A person's tabs and devices; more is a loop that reconnects."""
STREAMS_MAX = 10_000
"""Open streams of one process, about 30 kB each."""

GOING_AWAY, POLICY, RESTART, TRY_LATER = 1001, 1008, 1012, 1013
"""Close codes. Source: RFC 6455, 7.4.1, and IANA's registry of WebSocket close codes."""


class Position(NamedTuple):
    """Event position of a message in its partition of `changesets`: offset of the record, index in it."""

    offset: int
    event: int


class StreamEnd(NamedTuple):
    """Code and reason with which a stream is closed."""

    code: int
    reason: str


RESTARTED = StreamEnd(RESTART, "the stream begins anew: connect again")


class StreamRefused(Exception):
    """Refuse a subscriber; `end` is the reason for the browser."""

    def __init__(self, end: StreamEnd) -> None:
        super().__init__(end.reason)
        self.end = end


class Subscriber:
    """One browser's queue, for any transport. All methods but `next` and `ended` return at once."""

    def __init__(self, user: int) -> None:
        self.user = user
        self.ended_with: StreamEnd | None = None
        self._queue: deque[tuple[Position, str]] = deque()
        self._bytes = 0
        self._begun = False
        self._position = 0
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()

    def offer(self, position: Position, text: str) -> None:
        """Queue a message; end the stream where the queue is full."""
        if self.ended_with is not None or position.offset < self._position:
            return
        if len(self._queue) >= QUEUE_MESSAGES_MAX or self._bytes + len(text) > QUEUE_BYTES_MAX:
            self.end(StreamEnd(TRY_LATER, "too slow: connect again for a new snapshot"))
            return
        self._queue.append((position, text))
        self._bytes += len(text)
        if self._begun:
            self._arrived.set()

    def begin(self, position: int) -> None:
        """Release messages, except those below the snapshot's position."""
        self._position = position
        self._queue = deque(message for message in self._queue if message[0].offset >= position)
        self._bytes = sum(len(text) for _, text in self._queue)
        self._begun = True
        self._arrived.set()

    async def next(self) -> str:
        """Wait for the next message."""
        while not (self._begun and self._queue):
            self._arrived.clear()
            await self._arrived.wait()
        _, text = self._queue.popleft()
        self._bytes -= len(text)
        return text

    def end(self, end: StreamEnd) -> None:
        """End the stream and drop its queue. A second call changes nothing."""
        if self.ended_with is None:
            self.ended_with = end
            self._queue.clear()
            self._bytes = 0
            self._ended.set()

    async def ended(self) -> StreamEnd:
        """Wait until the stream is ended."""
        await self._ended.wait()
        assert self.ended_with is not None
        return self.ended_with


class Hub:
    """All subscribers of this process, by user."""

    def __init__(self) -> None:
        self._by_user: dict[int, set[Subscriber]] = {}
        self._last: dict[int, Position] = {}
        self._count = 0
        self.is_open = False

    def join(self, user: int) -> Subscriber:
        """Add a subscriber and start to queue its user's messages.

        Raises: StreamRefused.
        """
        if not self.is_open:
            raise StreamRefused(RESTARTED)
        if self._count >= STREAMS_MAX:
            raise StreamRefused(StreamEnd(TRY_LATER, "this server is full"))
        subscribers = self._by_user.setdefault(user, set())
        if len(subscribers) >= STREAMS_PER_USER_MAX:
            raise StreamRefused(StreamEnd(POLICY, f"more than {STREAMS_PER_USER_MAX} streams of one user"))
        subscriber = Subscriber(user)
        subscribers.add(subscriber)
        self._count += 1
        metrics.STREAMS.set(self._count)
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Remove a subscriber. A second call changes nothing."""
        subscribers = self._by_user.get(subscriber.user, set())
        if subscriber in subscribers:
            subscribers.remove(subscriber)
            self._count -= 1
            metrics.STREAMS.set(self._count)
        if not subscribers:
            self._by_user.pop(subscriber.user, None)

    def dispatch(self, *, partition: int, position: Position, user: int, value: bytes) -> None:
        """Queue a message for all of a user's subscribers, with its position; drop a repeat for all.

        A publisher that crashed sends its last messages again. Source: docs/architecture.md, the reader's rule.
        """
        if position <= self._last.get(partition, Position(-1, -1)):
            metrics.PUSH_SKIPPED.labels("repeat").inc()
            return
        self._last[partition] = position
        subscribers = self._by_user.get(user)
        if not subscribers:
            return
        text = f'{value[:-1].decode()},"position":"{partition}:{position.offset}.{position.event}"}}'
        for subscriber in subscribers:
            subscriber.offer(position, text)
        metrics.STREAM_MESSAGES.inc(len(subscribers))

    def open(self) -> None:
        """Accept subscribers and messages; reset the deduplication positions."""
        self._last.clear()
        self.is_open = True

    def close(self, end: StreamEnd) -> None:
        """End all streams and refuse subscribers until the hub is open again."""
        self.is_open = False
        self.end_all(end)

    def end_all(self, end: StreamEnd) -> None:
        """End all streams; their browsers may connect again at once."""
        for user in list(self._by_user):
            self.end_user(user, end)

    def end_user(self, user: int, end: StreamEnd) -> None:
        """End all streams of one user."""
        for subscriber in list(self._by_user.get(user, ())):
            subscriber.end(end)
