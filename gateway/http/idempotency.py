"""Idempotency: run a request once a key and repeat its answer to a client that lost it.

Answers are kept in this process, for a day. The effects are safe without them (an Item's public token is spent once, a
mark is a mark); the key only returns the answer that the client missed.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, TypeVar

from gateway.http.problems import Problem

TTL_S = 24 * 3600.0
ANSWERS_MAX = 10_000
"""About 500 bytes each; the oldest is dropped first."""


class Answer(NamedTuple):
    """Status and JSON document that a handler returns."""

    status: HTTPStatus
    document: Mapping[str, Any]


Result = TypeVar("Result")


class _Entry(NamedTuple):
    body: bytes
    expires_at: float
    task: "asyncio.Task[Any]"


class IdempotentAnswers(Generic[Result]):
    """Results by idempotency key. `clock` is monotonic, in seconds."""

    def __init__(
        self, *, ttl_s: float = TTL_S, answers_max: int = ANSWERS_MAX, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s = ttl_s
        self._answers_max = answers_max
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    async def once(
        self, *, tenant: str, key: str | None, body: bytes, action: Callable[[], Awaitable[Result]]
    ) -> Result:
        """Return the result for this key: run the action, or return its earlier result. A failure is not kept.

        Raises: Problem 409, where the key came with another body before.
        """
        if key is None:
            return await action()
        name = hashlib.sha256(f"{tenant}\0{key}".encode()).digest()
        digest = hashlib.sha256(body).digest()
        entry = self._entries.get(name)
        if entry is not None and self._clock() >= entry.expires_at:
            entry = None
        if entry is not None and entry.body != digest:
            raise Problem(HTTPStatus.CONFLICT, "idempotency_key_reused", "this key came with another request before")
        task: asyncio.Task[Result] = entry.task if entry else self._start(name, digest, action)
        # Shielded: a client that hangs up must not undo a link that another attempt of its own waits for.
        return await asyncio.shield(task)

    def _start(self, name: bytes, body: bytes, action: Callable[[], Awaitable[Result]]) -> "asyncio.Task[Result]":
        task = asyncio.ensure_future(action())
        assert isinstance(task, asyncio.Task)
        self._entries[name] = _Entry(body, self._clock() + self._ttl_s, task)
        self._entries.move_to_end(name)
        while len(self._entries) > self._answers_max:
            self._entries.popitem(last=False)
        task.add_done_callback(lambda done: self._drop_failed(name, done))
        return task

    def _drop_failed(self, name: bytes, task: "asyncio.Task[Result]") -> None:
        if task.cancelled() or task.exception() is not None:
            entry = self._entries.get(name)
            if entry is not None and entry.task is task:
                del self._entries[name]
