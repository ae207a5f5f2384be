"""Scans of the log beside another source: opened for a block, and read only as far as the other source."""

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
    """Open a reader of the log for a block. Raises: Retry, where Kafka does not answer."""
    try:
        await look.start()
        yield look
    finally:
        await look.stop()


async def records(reader: LogReader, partition: int, start: int, end: int) -> AsyncGenerator[Received, None]:
    """Yield the records from offset `start` up to `end`, one by one; use it in contextlib.aclosing.

    Raises: as `LogReader.read`.
    """
    async with aclosing(reader.read(partition, start, end)) as lists:
        async for batch in lists:
            for record in batch:
                yield record


class Ahead(Generic[T]):
    """An iterator that is read up to a limit, again and again; the first element above it waits for the next call."""

    def __init__(self, source: AsyncIterator[T]) -> None:
        self._source = source
        self._next: T | None = None

    async def until(self, is_above: Callable[[T], bool]) -> AsyncIterator[T]:
        """Yield the elements before the first one that is above the limit."""
        while True:
            if self._next is None:
                self._next = await anext(self._source, None)
            element = self._next
            if element is None or is_above(element):
                return
            self._next = None
            yield element

    async def rest(self) -> AsyncIterator[T]:
        """Yield the remaining elements."""
        async for element in self.until(lambda _: False):
            yield element
