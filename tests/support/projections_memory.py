"""Fold a log into the tables in memory, in batches."""

from collections.abc import Sequence
from typing import TypeVar

from runtime.kafka.reader import Received
from sandbox.simulation.memory.projection_tables import MemoryProjections
from tests.support.projections_log import owners

T = TypeVar("T")


def cut(records: Sequence[T], cuts: Sequence[int]) -> list[Sequence[T]]:
    """Cut records into batches that end at these indexes, modulo their number, and at the end."""
    ends = [*sorted({index % (len(records) + 1) for index in cuts} - {0}), len(records)]
    return [records[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True) if end > begin]


def fold_batches(
    records: Sequence[Received], cuts: Sequence[int] | None = (), *, memory: MemoryProjections | None = None
) -> MemoryProjections:
    """Fold a log, cut into batches, into `memory` or an empty one; `cuts` None folds record by record."""
    memory = MemoryProjections(owners) if memory is None else memory
    for batch in cut(records, range(len(records)) if cuts is None else cuts):
        memory.project(batch)
    return memory
