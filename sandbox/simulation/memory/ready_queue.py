"""What is due, by tenant and lane in the order of time: the index `sync_state_ready` in memory."""

import heapq
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Generic, Protocol, TypeVar


class Due(Protocol):
    """A row, as far as its place in the queue goes."""

    item_id: str
    tenant: str
    lane: int

    @property
    def ready_at(self) -> datetime | None:
        """When it can be claimed."""


Kind = TypeVar("Kind", bound=Due)


class Ready(Generic[Kind]):
    """Heaps of rows. An entry whose row has another place by now is dropped when it comes to the top."""

    def __init__(self, rows: Mapping[str, Kind]) -> None:
        self._rows = rows
        self._heaps: dict[tuple[str, int], list[tuple[datetime, str]]] = {}

    def put(self, row: Kind) -> None:
        """Note a row's place, after it changed."""
        if row.ready_at is not None:
            heapq.heappush(self._heaps.setdefault((row.tenant, row.lane), []), (row.ready_at, row.item_id))

    def first(
        self, now: datetime, count: int, accepts: Callable[[Kind, datetime], bool]
    ) -> Iterator[tuple[tuple[str, int], list[Kind]]]:
        """The first rows of each tenant and lane that are ready and accepted."""
        for key in sorted(self._heaps):
            heap = self._heaps[key]
            found: list[Kind] = []
            kept: list[tuple[datetime, str]] = []
            while heap and heap[0][0] <= now and len(found) < count:
                entry = heapq.heappop(heap)
                row = self._rows.get(entry[1])
                if row is None or row.ready_at != entry[0] or (row.tenant, row.lane) != key or entry in kept[-1:]:
                    continue
                kept.append(entry)
                if accepts(row, now):
                    found.append(row)
            for entry in kept:
                heapq.heappush(heap, entry)
            if found:
                yield key, found
