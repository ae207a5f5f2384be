"""A reader of the public topics, written from docs/architecture.md alone: the reader's rule of positions."""

from typing import Any

import zstandard

from sandbox.observe.observer import Observer
from schemas.encoding import codec
from schemas.topics import HEADER_POSITION, PUBLIC
from tests.support.acceptance_topics import whole

Position = tuple[int, int]
"""Source offset and index within the changeset."""


async def read_topics(observer: Observer) -> dict[tuple[int, str], list[tuple[Position, str]]]:
    """Read each public topic from its start: (partition, topic) to (position, event type), by the reader's rule."""
    records = await whole(observer.settings, PUBLIC)
    return {(number, topic): _kept(found) for (topic, number), found in records.items()}


def _kept(records: list[Any]) -> list[tuple[Position, str]]:
    kept: list[tuple[Position, str]] = []
    last: Position = (-1, -1)
    for record in records:
        headers = dict(record.headers)
        offset, _, index = headers[HEADER_POSITION].decode().partition(".")
        position = (int(offset), int(index))
        if position > last:
            kept.append((position, headers["ce_type"].decode()))
            last = position
    return kept


async def net_events(observer: Observer) -> dict[tuple[int, str], list[tuple[Position, str]]]:
    """What the fold says was to be published, from the table `changesets`, in the same form."""
    topic_of = {kind: topic.name for topic in PUBLIC for kind in topic.event_types}
    rows = await observer.pool.fetch(
        "SELECT partition, source_offset, events FROM reads.changesets WHERE net_events > 0 ORDER BY 1, 2"
    )
    expected: dict[tuple[int, str], list[tuple[Position, str]]] = {
        (number, topic.name): [] for topic in PUBLIC for number in range(observer.settings.partitions)
    }
    for row in rows:
        block = zstandard.ZstdDecompressor().decompress(row["events"], max_output_size=2**28)
        for index, event in enumerate(codec.decode_events(block)):
            expected[row["partition"], topic_of[event.type]].append(((row["source_offset"], index), event.type))
    return expected
