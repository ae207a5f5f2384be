"""Run the projections stage in memory: gate and fold over dictionaries, with the real publisher."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from projections.gate.quarantine import QuarantineSpan
from projections.publish.kafka_records import ChangesetEvents, changesets_with_events
from projections.publish.outbox import ROWS_MAX
from projections.publish.publisher import Committed, Publisher
from runtime.kafka.reader import GatheringReader, Received, unread
from runtime.retry import retry_until_done
from sandbox.simulation.engine.network import Connection
from sandbox.simulation.memory.database import Database
from sandbox.simulation.memory.projection_tables import MemoryProjections, OwnersOf

READER = "projections"
BATCH_MAX = 12
"""Records that one transaction folds at most."""

Result = TypeVar("Result")


class Projection:
    """The tables of the projections with their positions and checkpoints; a commit is applied as a whole."""

    def __init__(
        self, owners: OwnersOf, *, on_quarantined: Callable[[str, QuarantineSpan, str], None] = lambda *_: None
    ) -> None:
        self.memory = MemoryProjections(owners)
        self._on_quarantined = on_quarantined
        self._reported: set[tuple[str, QuarantineSpan]] = set()
        self.positions: dict[int, int] = {}
        self.checkpoints: dict[int, int] = {}
        self._changesets: dict[int, list[ChangesetEvents]] = {}

    def commit(self, records: Sequence[Received], checkpoints: Mapping[int, int]) -> Committed:
        """Fold the records from the positions on, and advance the positions."""
        new = unread(records, self.positions)
        starts = {record.partition: self.positions.get(record.partition, 0) for record in records}
        spans = {partition: (start, start) for partition, start in starts.items()}
        before = len(self.memory.folded)
        if new:
            self.memory.project(new)
            self._report_quarantines()
        for record in new:
            self.positions[record.partition] = record.offset + 1
            spans[record.partition] = (starts[record.partition], record.offset + 1)
        self.raise_checkpoints(checkpoints)
        changesets = changesets_with_events(self.memory.folded[before:])
        for changeset in changesets:
            self._changesets.setdefault(changeset.partition, []).append(changeset)
        return Committed(spans, changesets)

    def _report_quarantines(self) -> None:
        for item_id, quarantines in self.memory.quarantined.items():
            for span in quarantines:
                if (item_id, span) not in self._reported:
                    self._reported.add((item_id, span))
                    self._on_quarantined(item_id, span, self.memory.reasons[item_id, span.first])

    def raise_checkpoints(self, checkpoints: Mapping[int, int]) -> None:
        """Raise checkpoints; a higher one stays."""
        for partition, offset in checkpoints.items():
            self.checkpoints[partition] = max(offset, self.checkpoints.get(partition, 0))

    def changesets(self, partition: int, start: int, end: int) -> list[ChangesetEvents]:
        """Return the first changesets with events from offset `start` up to `end`."""
        changesets = [row for row in self._changesets.get(partition, []) if start <= row.offset < end]
        return sorted(changesets, key=lambda changeset: changeset.offset)[:ROWS_MAX]


class ProjectionClient:
    """One process's access to the tables of the projections, and the Outbox of its publisher."""

    def __init__(self, projection: Projection, database: Database, connection: Connection) -> None:
        self._projection = projection
        self._database = database
        self._connection = connection

    async def commit(self, records: Sequence[Received], checkpoints: Mapping[int, int]) -> Committed:
        """Fold records in one transaction. Raises: Retry."""
        return await self._execute(lambda: self._projection.commit(records, checkpoints))

    async def read_position(self, partition: int) -> int:
        """Return the position in a partition. Raises: Retry."""
        return await self._execute(lambda: self._projection.positions.get(partition, 0))

    async def read_checkpoint(self, partition: int) -> int:
        """Return the offset below which all events of a partition were acknowledged."""
        return await self._execute(lambda: self._projection.checkpoints.get(partition, 0))

    async def read_changesets(self, partition: int, start: int, end: int) -> list[ChangesetEvents]:
        """Return changesets with events, in order."""
        return await self._execute(lambda: self._projection.changesets(partition, start, end))

    async def read_held_topics(self) -> dict[tuple[str, int], int]:
        """Return no topics: none is republished, but the question costs a statement."""
        return await self._execute(dict)

    async def store_checkpoints(self, checkpoints: Mapping[int, int]) -> None:
        """Raise checkpoints."""
        await self._execute(lambda: self._projection.raise_checkpoints(checkpoints))

    async def _execute(self, effect: Callable[[], Result]) -> Result:
        return await self._connection.call(lambda: self._database.execute(effect))


class Projector:
    """Take records, fold them in one transaction, submit the events to the publisher."""

    def __init__(self, client: ProjectionClient, publisher: Publisher, rng: random.Random) -> None:
        self._client = client
        self._publisher = publisher
        self._rng = rng

    async def run(self, reader: GatheringReader) -> None:
        """Project for ever, in batches of random size."""
        while True:
            records = list(await reader.take())
            while records:
                size = self._rng.randint(1, BATCH_MAX)
                batch, records = records[:size], records[size:]
                await self._publisher.wait_for_room()
                await self._commit(batch)
                reader.acknowledge(batch)

    async def position(self, partition: int) -> int:
        """Return the position in a partition; the publisher sends unpublished events below it. Raises: Retry."""
        position = await self._client.read_position(partition)
        self._publisher.submit(Committed({partition: (position, position)}, []))
        return position

    async def _commit(self, batch: Sequence[Received]) -> None:
        checkpoints = self._publisher.unstored_checkpoints()
        committed = await retry_until_done(lambda: self._client.commit(batch, checkpoints), action=READER)
        self._publisher.mark_stored(checkpoints)
        self._publisher.submit(committed)
