"""Looks at the log beside something else: open for a block, and read only as far as the other side has come."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Generic, Protocol, TypeVar

from runtime.archive.log_reader import LogReader
from runtime.kafka.reader import Received

T = TypeVar("T")


class _Opened(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


Look = TypeVar("Look", bound=_Opened)


@asynccontextmanager
async def looking(look: Look) -> AsyncIterator[Look]:
    """Have a look at the log open for a block. Raises: Retry, where Kafka does not answer."""
    try:
        await look.start()
        yield look
    finally:
        await look.stop()


async def records(reader: LogReader, partition: int, start: int, end: int) -> AsyncGenerator[Received, None]:
    """The records from offset `start` up to `end`, one by one. Raises: as `LogReader.read`.

    Whoever stops before the end closes it (contextlib.aclosing).
    """
    async with aclosing(reader.read(partition, start, end)) as lists:
        async for some in lists:
            for record in some:
                yield record


class Ahead(Generic[T]):
    """An iterator that is read up to a mark, again and again: what lies at or above the mark waits for the next."""

    def __init__(self, source: AsyncIterator[T]) -> None:
        self._source = source
        self._next: T | None = None

    async def until(self, is_above: Callable[[T], bool]) -> AsyncIterator[T]:
        """Those that come before the first one that is above."""
        while True:
            if self._next is None:
                self._next = await anext(self._source, None)
            found = self._next
            if found is None or is_above(found):
                return
            self._next = None
            yield found

    async def rest(self) -> AsyncIterator[T]:
        """All that is left."""
        async for found in self.until(lambda _: False):
            yield found
