"""The projections stage in memory: gate and fold over dictionaries, and the real publisher behind them."""

import random
from collections.abc import Callable, Mapping, Sequence

from projections.gate.quarantine import QuarantineSpan
from projections.publish.kafka_records import ChangesetEvents, changesets_with_events
from projections.publish.outbox import ROWS_MAX
from projections.publish.publisher import Committed, Publisher
from runtime.kafka.reader import GatheringReader, Received, unread
from runtime.retry import insist
from sandbox.simulation.engine.network import Connection
from sandbox.simulation.memory.projection_tables import MemoryProjections, OwnersOf
from sandbox.simulation.memory.store import Database

READER = "projections"
CUT_MAX = 12
"""Records that one transaction folds at most."""


class Projection:
    """Tables of the projections with their positions and checkpoints; a commit is whole or not at all."""

    def __init__(
        self, owners: OwnersOf, *, on_quarantined: Callable[[str, QuarantineSpan, str], None] = lambda *_: None
    ) -> None:
        self.memory = MemoryProjections(owners)
        self._on_quarantined = on_quarantined
        self._told: set[tuple[str, QuarantineSpan]] = set()
        self.positions: dict[int, int] = {}
        self.checkpoints: dict[int, int] = {}
        self._placed: dict[int, list[ChangesetEvents]] = {}

    def commit(self, records: Sequence[Received], checkpoints: Mapping[int, int]) -> Committed:
        """Fold what lies at the positions or behind, and move them."""
        new = unread(records, self.positions)
        spans = {record.partition: self._stands(record.partition) for record in records}
        before = len(self.memory.folded)
        if new:
            self.memory.project(new)
            self._tell()
        for record in new:
            self.positions[record.partition] = record.offset + 1
            spans[record.partition] = (spans[record.partition][0], record.offset + 1)
        self.raise_checkpoints(checkpoints)
        found = changesets_with_events(self.memory.folded[before:])
        for one in found:
            self._placed.setdefault(one.partition, []).append(one)
        return Committed(spans, found)

    def _tell(self) -> None:
        for item_id, quarantines in self.memory.quarantined.items():
            for quarantined in quarantines:
                if (item_id, quarantined) not in self._told:
                    self._told.add((item_id, quarantined))
                    self._on_quarantined(item_id, quarantined, self.memory.reasons[item_id, quarantined.first])

    def raise_checkpoints(self, checkpoints: Mapping[int, int]) -> None:
        """Raise checkpoints; one that is higher already stays."""
        for partition, at in checkpoints.items():
            self.checkpoints[partition] = max(at, self.checkpoints.get(partition, 0))

    def events(self, partition: int, start: int, end: int) -> list[ChangesetEvents]:
        """The first changesets with net events from `start` up to `end`."""
        found = [one for one in self._placed.get(partition, []) if start <= one.offset < end]
        return sorted(found, key=lambda one: one.offset)[:ROWS_MAX]

    def _stands(self, partition: int) -> tuple[int, int]:
        at = self.positions.get(partition, 0)
        return (at, at)


class MemoryOutbox:
    """The publisher's side of the tables."""

    def __init__(self, projection: Projection, database: Database, wire: Connection) -> None:
        self._projection = projection
        self._database = database
        self._wire = wire

    async def read_checkpoint(self, partition: int) -> int:
        """The offset below which all events of a partition were acknowledged."""
        return await self._wire.call(lambda: self._database.do(lambda: self._projection.checkpoints.get(partition, 0)))

    async def read_changesets(self, partition: int, start: int, end: int) -> list[ChangesetEvents]:
        """Changesets with net events, in order."""
        return await self._wire.call(lambda: self._database.do(lambda: self._projection.events(partition, start, end)))

    async def read_held_topics(self) -> dict[tuple[str, int], int]:
        """Topics, each with a partition of it, that are filled again: none is, but to know it is a question too."""
        return await self._wire.call(lambda: self._database.do(dict))

    async def store_checkpoints(self, checkpoints: Mapping[int, int]) -> None:
        """Raise checkpoints."""
        await self._wire.call(lambda: self._database.do(lambda: self._projection.raise_checkpoints(checkpoints)))


class Projector:
    """Takes what waits, folds it in one transaction, hands the events over."""

    def __init__(
        self, projection: Projection, database: Database, wire: Connection, publisher: Publisher, rng: random.Random
    ) -> None:
        self._projection = projection
        self._database = database
        self._wire = wire
        self._publisher = publisher
        self._rng = rng

    async def run(self, reader: GatheringReader) -> None:
        """Project for ever, in batches cut anywhere."""
        while True:
            taken = list(await reader.take())
            while taken:
                size = self._rng.randint(1, CUT_MAX)
                batch, taken = taken[:size], taken[size:]
                await self._publisher.wait_for_room()
                await self._commit(batch)
                reader.acknowledge(batch)

    async def position(self, partition: int) -> int:
        """Where the projections stand; what was committed there and not published is sent now. Raises: Retry."""
        at = await self._wire.call(lambda: self._database.do(lambda: self._projection.positions.get(partition, 0)))
        self._publisher.submit(Committed({partition: (at, at)}, []))
        return at

    async def _commit(self, batch: Sequence[Received]) -> None:
        checkpoints = self._publisher.unstored_checkpoints()
        committed = await insist(
            lambda: self._wire.call(lambda: self._database.do(lambda: self._projection.commit(batch, checkpoints))),
            action=READER,
        )
        self._publisher.mark_stored(checkpoints)
        self._publisher.submit(committed)
