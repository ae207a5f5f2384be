"""Checks of database, topic and archive before a rebuild that could not succeed. Shell."""

from collections.abc import Iterable, Mapping
from contextlib import aclosing

import asyncpg

from projections.rebuild import versions
from projections.rebuild.preflight import LogExtent, Versions, log_problems, topic_problems, version_problems
from projections.store import tables
from projections.store.tables import NEXT, OLD, SCHEMA
from runtime.archive import store
from runtime.archive.log_reader import LogReader
from runtime.archive.log_scan import looking
from runtime.kafka import topics
from runtime.kafka.continuity import checksum
from runtime.kafka.reader import Position
from runtime.settings import Settings
from schemas.errors import Halt
from schemas.topics import CHANGESETS, full_name


async def require(connection: asyncpg.Connection, settings: Settings, *, restart: bool, swaps: bool) -> None:
    """Check everything that a rebuild depends on.

    Raises: Halt, with each reason against it in a sentence; Retry, where Kafka or Postgres does not answer.
    """
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", tables.version.fullname):
        raise Halt("there is no live version to rebuild: run `tartan migrate`")
    existing = await versions.load_versions(connection)
    live = await versions.positions(connection, SCHEMA)
    begun = await versions.positions(connection, NEXT) if NEXT in existing and not restart else {}
    folds = {schema: version.fold for schema, version in existing.items()}
    state = Versions(folds[SCHEMA], folds.get(NEXT), folds.get(OLD), _offsets(live), _offsets(begun))
    _refuse(version_problems(state, fold=tables.FOLD, restart=restart, swaps=swaps))
    topic, has_archive = full_name(CHANGESETS, settings.topic_prefix), store.configured(settings)
    plan = await topics.planned(settings, await topics.read_progress(connection))
    _refuse(topic_problems(plan.steps, topic=topic, has_archive=has_archive))
    async with looking(LogReader(settings, CHANGESETS)) as log:
        completeness = await log.completeness(list(live))
        extents = {number: LogExtent(extent.missing(), extent.end) for number, extent in completeness.items()}
        _refuse(log_problems(extents, _offsets(live), topic=topic, has_archive=has_archive))
        for name, positions in (("the live version", live), ("the version that is begun", begun)):
            for number, position in positions.items():
                if position.next and position.last_checksum is not None:
                    async with aclosing(log.read(number, position.next - 1, position.next)) as lists:
                        [record] = await anext(lists)
                    if checksum(record.value) != position.last_checksum:
                        last = f"{topic} {number} at {position.next - 1}"
                        raise Halt(f"{last} is not the record that {name} has read: another log")


def _offsets(positions: Mapping[int, Position]) -> dict[int, int]:
    return {number: position.next for number, position in positions.items()}


def _refuse(reasons: Iterable[str]) -> None:
    if sentences := "; ".join(reasons):
        raise Halt(f"no rebuild: {sentences}")
