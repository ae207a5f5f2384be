"""The public topics by the reader's rule (docs/architecture.md), compared with the table `changesets`."""

from runtime.postgres.pool import borrowed
from sandbox.observe import published_events
from sandbox.observe.observer import Observer
from sandbox.observe.published_events import Partition, Published
from schemas.topics import PUBLIC


async def read_published(observer: Observer) -> dict[Partition, list[Published]]:
    """Return the deduplicated events of each partition of each public topic."""
    topics = await published_events.read_topics(observer.settings, PUBLIC)
    return {
        partition: published_events.deduplicate(map(published_events.event_of, records))
        for partition, records in topics.items()
    }


async def assert_published(observer: Observer) -> None:
    """Assert that the public topics hold exactly the net events of all changesets, in order."""
    published = await read_published(observer)
    async with borrowed(observer.pool) as connection:
        expected = await published_events.expected_events(connection)
    assert {partition: events for partition, events in published.items() if events} == expected
