"""Build the Kafka records of net events, for the public topics and for `push`. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from projections.events import public_events
from projections.model.unit_of_work import FoldedRecord, NetEvent
from projections.publish import browser_messages
from runtime.kafka.clients import Outgoing
from schemas import events, topics
from schemas.contract import subjects
from schemas.encoding import catalogue
from schemas.ids import event_id
from schemas.log import gate
from schemas.times import rfc3339
from schemas.topics import Topic

_TOPICS: dict[int, Topic] = {
    catalogue.TRANSACTION_EVENT_1: topics.TRANSACTIONS,
    catalogue.TRANSACTION_EVENT: topics.TRANSACTIONS,
    catalogue.BALANCE_EVENT: topics.BALANCES,
    catalogue.ITEM_EVENT: topics.ITEMS,
}
_SOURCE = ("ce_source", events.PUBLIC_SOURCE.encode())
_SPECIFICATION = ("ce_specversion", b"1.0")
LOCAL_PREFIXES: Mapping[int, bytes] = subjects.wire_prefixes(subjects.own_ids())
"""Bytes before an event by its schema, without a registry: Confluent's wire format with our own schema numbers."""


class ChangesetEvents(NamedTuple):
    """A changeset with net events. Units: `known_at` in microseconds since 1970, UTC.

    The events of a redrive belong to the changesets that were withheld, and their ids are made from those.
    """

    partition: int
    offset: int
    changeset: bytes
    user: int
    item_id: str | None
    known_at: int
    net_events: Sequence[NetEvent]
    is_redrive: bool = False


class Destination(NamedTuple):
    """One partition of a topic: records go there in order."""

    topic: Topic
    partition: int


def changesets_with_events(folded: Iterable[FoldedRecord]) -> list[ChangesetEvents]:
    """Return the folded records that have events to publish."""
    return [
        ChangesetEvents(
            record.context.partition,
            record.context.offset,
            record.context.changeset_id,
            record.context.user,
            record.item_id,
            record.context.known_at,
            record.net_events,
            record.type == gate.REDRIVE,
        )
        for record in folded
        if record.net_events
    ]


def build_records(
    changesets: Sequence[ChangesetEvents], prefixes: Mapping[int, bytes] = LOCAL_PREFIXES
) -> dict[Destination, list[Outgoing]]:
    """Build the records of the public topics and of `push`, by topic and partition, in order."""
    records = build_public_records(changesets, prefixes)
    for changeset in changesets:
        push = records.setdefault(Destination(topics.PUSH, changeset.partition), [])
        key = topics.user_key(changeset.user)
        for message in browser_messages.build_messages(
            changeset.net_events, item_id=changeset.item_id, known_at=changeset.known_at
        ):
            position = f"{changeset.offset}.{message.event_index}".encode()
            push.append(Outgoing(key, message.value, ((topics.HEADER_POSITION, position),)))
    return {destination: outgoing for destination, outgoing in records.items() if outgoing}


def build_public_records(
    changesets: Sequence[ChangesetEvents], prefixes: Mapping[int, bytes] = LOCAL_PREFIXES
) -> dict[Destination, list[Outgoing]]:
    """Build the records of the public topics only.

    Args:
        changesets: In the order of the log.
        prefixes: The bytes before an event, by its schema (runtime.kafka.schema_ids).

    Source: CloudEvents 1.0, Kafka protocol binding, binary content mode.
    """
    records: dict[Destination, list[Outgoing]] = {}
    for changeset in changesets:
        by_schema = {
            schema: records.setdefault(Destination(topic, changeset.partition), []) for schema, topic in _TOPICS.items()
        }
        time = ("ce_time", rfc3339(changeset.known_at).encode())
        changeset_id, start = changeset.changeset, f"{changeset.offset}."
        for index, event in enumerate(changeset.net_events):
            kind, schema, entity, data = event
            if changeset.is_redrive:
                changeset_id = public_events.changeset_id_of(event)
            key = public_events.key_of(event).encode()
            headers = (
                ("ce_id", event_id(changeset_id, kind, entity).encode()),
                ("ce_type", kind.encode()),
                time,
                _SOURCE,
                ("ce_subject", key),
                _SPECIFICATION,
                (topics.HEADER_POSITION, f"{start}{index}".encode()),
            )
            by_schema[schema].append(Outgoing(key, prefixes[schema] + data, headers))
    return records
