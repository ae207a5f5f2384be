"""Answers kept by `Idempotency-Key`, so that a client that lost one can ask again.

Kept in this process, for a day: what must survive it (an Item's id is spent once, a mark is a mark) is safe by
itself, and the key only gives a client back the answer that it missed.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, TypeVar

from gateway.http.problems import Problem

KEPT_S = 24 * 3600.0
KEPT_MAX = 10_000
"""About 500 bytes each; the oldest goes first."""


class Answer(NamedTuple):
    """What a handler answers."""

    status: HTTPStatus
    document: Mapping[str, Any]


Made = TypeVar("Made")


class _Kept(NamedTuple):
    body: bytes
    until: float
    answer: "asyncio.Task[Any]"


class Answers(Generic[Made]):
    """Runs a request once a key. `clock` is monotonic, in seconds."""

    def __init__(
        self, *, kept_s: float = KEPT_S, kept_max: int = KEPT_MAX, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kept_s = kept_s
        self._kept_max = kept_max
        self._clock = clock
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    async def once(self, *, tenant: str, key: str | None, body: bytes, act: Callable[[], Awaitable[Made]]) -> Made:
        """Give the answer to this key, made now or kept; one that failed is not kept.

        Raises: Problem 409, where the key came with another body before.
        """
        if key is None:
            return await act()
        name = hashlib.sha256(f"{tenant}\0{key}".encode()).digest()
        digest = hashlib.sha256(body).digest()
        kept = self._kept.get(name)
        if kept is not None and self._clock() >= kept.until:
            kept = None
        if kept is not None and kept.body != digest:
            raise Problem(HTTPStatus.CONFLICT, "idempotency_key_reused", "this key came with another request before")
        task: asyncio.Task[Made] = kept.answer if kept else self._begin(name, digest, act)
        # Shielded: a client that hangs up must not undo a link that another attempt of its own waits for.
        return await asyncio.shield(task)

    def _begin(self, name: bytes, body: bytes, act: Callable[[], Awaitable[Made]]) -> "asyncio.Task[Made]":
        task = asyncio.ensure_future(act())
        assert isinstance(task, asyncio.Task)
        self._kept[name] = _Kept(body, self._clock() + self._kept_s, task)
        self._kept.move_to_end(name)
        while len(self._kept) > self._kept_max:
            self._kept.popitem(last=False)
        task.add_done_callback(lambda done: self._forget_failed(name, done))
        return task

    def _forget_failed(self, name: bytes, task: "asyncio.Task[Made]") -> None:
        if task.cancelled() or task.exception() is not None:
            kept = self._kept.get(name)
            if kept is not None and kept.answer is task:
                del self._kept[name]
