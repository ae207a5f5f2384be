"""Queue due rows by tenant and lane in the order of time: the index `sync_state_ready` in memory."""

import heapq
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from sandbox.simulation.memory.rows import Row


class ReadyQueue:
    """Heaps of rows. An entry is dropped when it reaches the top and its row has moved."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self._rows = rows
        self._heaps: dict[tuple[str, int], list[tuple[datetime, str]]] = {}

    def put(self, row: Row) -> None:
        """Insert a row, after it changed."""
        if row.ready_at is not None:
            heapq.heappush(self._heaps.setdefault((row.tenant, row.lane), []), (row.ready_at, row.item_id))

    def first(
        self, now: datetime, count: int, accepts: Callable[[Row, datetime], bool]
    ) -> Iterator[tuple[tuple[str, int], list[Row]]]:
        """Yield the first rows of each tenant and lane that are ready and accepted."""
        for key in sorted(self._heaps):
            heap = self._heaps[key]
            rows: list[Row] = []
            valid: list[tuple[datetime, str]] = []
            while heap and heap[0][0] <= now and len(rows) < count:
                entry = heapq.heappop(heap)
                row = self._rows.get(entry[1])
                if row is None or row.ready_at != entry[0] or (row.tenant, row.lane) != key or entry in valid[-1:]:
                    continue
                valid.append(entry)
                if accepts(row, now):
                    rows.append(row)
            for entry in valid:
                heapq.heappush(heap, entry)
            if rows:
                yield key, rows
