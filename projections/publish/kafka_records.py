"""Net events as Kafka records: the public topics and `push`. Pure."""

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
"""What stands before an event by its schema, where there is no registry: Confluent's wire format with our numbers."""


class ChangesetEvents(NamedTuple):
    """A changeset that caused net events. Units: `known_at` in microseconds since 1970, UTC.

    A redrive tells what other changesets said: its events have the ids that those give them.
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
    """Where records go in order."""

    topic: Topic
    partition: int


def changesets_with_events(folded: Iterable[FoldedRecord]) -> list[ChangesetEvents]:
    """What is to be published of folded changesets."""
    return [
        ChangesetEvents(
            one.context.partition,
            one.context.offset,
            one.context.changeset_id,
            one.context.user,
            one.item_id,
            one.context.known_at,
            one.net_events,
            one.type == gate.REDRIVE,
        )
        for one in folded
        if one.net_events
    ]


def build_records(
    outbound: Sequence[ChangesetEvents], wire: Mapping[int, bytes] = LOCAL_PREFIXES
) -> dict[Destination, list[Outgoing]]:
    """The records of changesets, by topic and partition, in order: those of the public topics and of `push`."""
    lanes = build_public_records(outbound, wire)
    for changeset in outbound:
        _push(lanes.setdefault(Destination(topics.PUSH, changeset.partition), []), changeset)
    return {lane: outgoing for lane, outgoing in lanes.items() if outgoing}


def build_public_records(
    outbound: Sequence[ChangesetEvents], wire: Mapping[int, bytes] = LOCAL_PREFIXES
) -> dict[Destination, list[Outgoing]]:
    """The records of the public topics alone.

    `wire`: what stands before an event, by its schema (runtime.kafka.schema_ids).

    Source: CloudEvents 1.0, Kafka protocol binding, binary content mode.
    """
    lanes: dict[Destination, list[Outgoing]] = {}
    for changeset in outbound:
        lane_of = {
            schema: lanes.setdefault(Destination(topic, changeset.partition), []) for schema, topic in _TOPICS.items()
        }
        time = ("ce_time", rfc3339(changeset.known_at).encode())
        number, start = changeset.changeset, f"{changeset.offset}."
        for place, event in enumerate(changeset.net_events):
            kind, schema, entity, data = event
            if changeset.is_redrive:
                number = public_events.changeset_id_of(event)
            key = public_events.key_of(event).encode()
            headers = (
                ("ce_id", event_id(number, kind, entity).encode()),
                ("ce_type", kind.encode()),
                time,
                _SOURCE,
                ("ce_subject", key),
                _SPECIFICATION,
                (topics.HEADER_POSITION, f"{start}{place}".encode()),
            )
            lane_of[schema].append(Outgoing(key, wire[schema] + data, headers))
    return lanes


def _push(lane: list[Outgoing], changeset: ChangesetEvents) -> None:
    key = topics.user_key(changeset.user)
    for message in browser_messages.build_messages(
        changeset.net_events, item_id=changeset.item_id, known_at=changeset.known_at
    ):
        position = f"{changeset.offset}.{message.event_index}".encode()
        lane.append(Outgoing(key, message.value, ((topics.HEADER_POSITION, position),)))
