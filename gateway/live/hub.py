"""Who listens: each browser's queue, and the rule by which no message comes twice and none is missed.

A browser joins before its snapshot is read, so what is pushed meanwhile waits in its queue; when the snapshot is
there, what it shows already is dropped, queued or still to come: messages whose source lies below its position.
"""

import asyncio
from collections import deque
from typing import NamedTuple

from gateway import metrics

QUEUE_MESSAGES_MAX = 1_000
QUEUE_BYTES_MAX = 1024 * 1024
"""What waits for one browser. One that is further behind is cut off and takes a new snapshot; more would only be
older news, and 10,000 slow browsers would hold 10 GiB."""

STREAMS_PER_USER_MAX = 20
"""A person's tabs and devices; more is a loop that reconnects."""

STREAMS_MAX = 10_000
"""Open streams of one process, about 30 kB each."""

GOING_AWAY, POLICY, RESTART, TRY_LATER = 1001, 1008, 1012, 1013
"""Close codes. Source: RFC 6455, 7.4.1, and IANA's registry of WebSocket close codes."""


class Position(NamedTuple):
    """Where a message comes from in the user's partition of `changesets`: offset of the record, number in it."""

    offset: int
    event: int


class Ending(NamedTuple):
    """Why a stream is closed."""

    code: int
    reason: str


class Full(Exception):
    """There are as many streams as there may be. `ending` is what to tell the browser."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


class Subscriber:
    """One browser: the messages that wait for it. All methods but `next` and `ended` return at once."""

    def __init__(self, user: int) -> None:
        self.user = user
        self.ending: Ending | None = None
        self._waiting: deque[tuple[Position, str]] = deque()
        self._bytes = 0
        self._begun = False
        self._from = 0
        self._arrived = asyncio.Event()
        self._ended = asyncio.Event()

    def offer(self, position: Position, text: str) -> None:
        """Queue a message; where the queue is full the browser is cut off."""
        if self.ending is not None or position.offset < self._from:
            return
        if len(self._waiting) >= QUEUE_MESSAGES_MAX or self._bytes + len(text) > QUEUE_BYTES_MAX:
            self.end(Ending(TRY_LATER, "too slow: connect again for a new snapshot"))
            return
        self._waiting.append((position, text))
        self._bytes += len(text)
        if self._begun:
            self._arrived.set()

    def begin(self, position: int) -> None:
        """Let messages out from here on, but those that a snapshot at this position shows."""
        self._from = position
        kept = [(where, text) for where, text in self._waiting if where.offset >= position]
        self._waiting = deque(kept)
        self._bytes = sum(len(text) for _, text in kept)
        self._begun = True
        self._arrived.set()

    async def next(self) -> str:
        """Wait for the next message."""
        while not (self._begun and self._waiting):
            self._arrived.clear()
            await self._arrived.wait()
        _, text = self._waiting.popleft()
        self._bytes -= len(text)
        return text

    def end(self, ending: Ending) -> None:
        """Give the browser up; what waits is dropped."""
        if self.ending is None:
            self.ending = ending
            self._waiting.clear()
            self._bytes = 0
            self._ended.set()

    async def ended(self) -> Ending:
        """Wait until the browser was given up."""
        await self._ended.wait()
        assert self.ending is not None
        return self.ending


class Hub:
    """All browsers of this process, by user."""

    def __init__(self) -> None:
        self._by_user: dict[int, set[Subscriber]] = {}
        self._last: dict[int, Position] = {}
        self._count = 0
        self.is_live = False

    def join(self, user: int) -> Subscriber:
        """Begin to queue a user's messages.

        Raises: Full.
        """
        if not self.is_live:
            raise Full(Ending(RESTART, "the stream begins anew: connect again"))
        if self._count >= STREAMS_MAX:
            raise Full(Ending(TRY_LATER, "this server is full"))
        listening = self._by_user.setdefault(user, set())
        if len(listening) >= STREAMS_PER_USER_MAX:
            raise Full(Ending(POLICY, f"more than {STREAMS_PER_USER_MAX} streams of one user"))
        subscriber = Subscriber(user)
        listening.add(subscriber)
        self._count += 1
        metrics.STREAMS.set(self._count)
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a browser."""
        listening = self._by_user.get(subscriber.user, set())
        if subscriber in listening:
            listening.remove(subscriber)
            self._count -= 1
            metrics.STREAMS.set(self._count)
        if not listening:
            self._by_user.pop(subscriber.user, None)

    def dispatch(self, *, partition: int, position: Position, user: int, value: bytes) -> None:
        """Give a message to all of a user's browsers, with its position; a repeat is dropped for all.

        A publisher that crashed sends again what was in flight. Source: docs/architecture.md, the reader's rule.
        """
        if position <= self._last.get(partition, Position(-1, -1)):
            metrics.PUSH_SKIPPED.labels("repeat").inc()
            return
        self._last[partition] = position
        listening = self._by_user.get(user)
        if not listening:
            return
        text = f'{value[:-1].decode()},"position":"{partition}:{position.offset}.{position.event}"}}'
        for subscriber in listening:
            subscriber.offer(position, text)
        metrics.STREAM_MESSAGES.inc(len(listening))

    def open(self) -> None:
        """From now on every message comes by here; the positions begin anew."""
        self._last.clear()
        self.is_live = True

    def close(self, ending: Ending) -> None:
        """Give all browsers up, and take none until the hub is open again."""
        self.is_live = False
        self.end_all(ending)

    def end_all(self, ending: Ending) -> None:
        """Give all browsers up; they may come again at once."""
        for listening in list(self._by_user.values()):
            for subscriber in list(listening):
                subscriber.end(ending)

    def end_user(self, user: int, ending: Ending) -> None:
        """Give one user's browsers up."""
        for subscriber in list(self._by_user.get(user, ())):
            subscriber.end(ending)
