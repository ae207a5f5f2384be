"""Looks at database, topic and archive before a rebuild, and refuses one that could not end well. Shell."""

from collections.abc import Mapping
from contextlib import aclosing

import asyncpg

from projections.rebuild import versions
from projections.rebuild.load import opened_log
from projections.rebuild.preflight import NO_TABLES, Kept, Versions, of_log, of_topic, of_versions
from projections.store import tables
from projections.store.tables import NEXT, OLD, SCHEMA
from runtime.archive import store
from runtime.archive.log_reader import LogReader
from runtime.kafka import topics
from runtime.kafka.continuity import checksum
from runtime.kafka.reader import Position
from runtime.settings import Settings
from schemas.errors import Halt
from schemas.topics import CHANGESETS, full_name


async def require(connection: asyncpg.Connection, settings: Settings, *, restart: bool, swaps: bool) -> None:
    """Look at everything that a rebuild builds on.

    Raises: Halt, with each reason against it in a sentence; Retry, where something does not answer.
    """
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", tables.version.fullname):
        raise Halt(NO_TABLES)
    found = await versions.found(connection)
    live = await versions.positions(connection, SCHEMA)
    begun = await versions.positions(connection, NEXT) if NEXT in found and not restart else {}
    folds = {schema: version.fold for schema, version in found.items()}
    _refuse(
        of_versions(
            Versions(folds[SCHEMA], folds.get(NEXT), folds.get(OLD), _next(live), _next(begun)),
            fold=tables.FOLD,
            restart=restart,
            swaps=swaps,
        )
    )
    topic, has_archive = full_name(CHANGESETS, settings.topic_prefix), store.configured(settings)
    plan = await topics.planned(settings, await topics.read_progress(connection))
    _refuse(list(of_topic(plan.steps, topic=topic, has_archive=has_archive)))
    async with opened_log(settings) as log:
        extents = await log.completeness(list(live))
        kept = {number: Kept(extent.missing(), extent.end) for number, extent in extents.items()}
        _refuse(list(of_log(kept, _next(live), topic=topic, has_archive=has_archive)))
        for who, positions in (("the live version", live), ("the version that is begun", begun)):
            for number, position in positions.items():
                await _same_log(log, f"{topic} {number}", number, position, who)


async def _same_log(log: LogReader, where: str, partition: int, position: Position, who: str) -> None:
    """The record before a position is the one that was read there. Raises: Halt."""
    if not position.next or position.last_checksum is None:
        return
    async with aclosing(log.read(partition, position.next - 1, position.next)) as lists:
        [record] = await anext(lists)
    if checksum(record.value) != position.last_checksum:
        raise Halt(f"{where} at {position.next - 1} is not the record that {who} has read: another log")


def _next(positions: Mapping[int, Position]) -> dict[int, int]:
    return {number: position.next for number, position in positions.items()}


def _refuse(reasons: list[str]) -> None:
    if reasons:
        raise Halt("no rebuild: " + "; ".join(reasons))
