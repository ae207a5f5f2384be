"""Net events as Kafka records: the public topics and `push`. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from projections.events import public_events
from projections.model.unit_of_work import Folded, NetEvent
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
OWN_IDS: Mapping[int, bytes] = subjects.wire_prefixes(subjects.own_ids())
"""What stands before an event by its schema, where there is no registry: Confluent's wire format with our numbers."""


class Outbound(NamedTuple):
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


class Lane(NamedTuple):
    """Where records go in order."""

    topic: Topic
    partition: int


def outbound(folded: Iterable[Folded]) -> list[Outbound]:
    """What is to be published of folded changesets."""
    return [
        Outbound(
            one.place.partition,
            one.place.offset,
            one.place.changeset,
            one.place.user,
            one.item_id,
            one.place.known_at,
            one.net_events,
            one.type == gate.REDRIVE,
        )
        for one in folded
        if one.net_events
    ]


def records(outbound: Sequence[Outbound], wire: Mapping[int, bytes] = OWN_IDS) -> dict[Lane, list[Outgoing]]:
    """The records of changesets, by topic and partition, in order: those of the public topics and of `push`."""
    lanes = public(outbound, wire)
    for changeset in outbound:
        _push(lanes.setdefault(Lane(topics.PUSH, changeset.partition), []), changeset)
    return {lane: outgoing for lane, outgoing in lanes.items() if outgoing}


def public(outbound: Sequence[Outbound], wire: Mapping[int, bytes] = OWN_IDS) -> dict[Lane, list[Outgoing]]:
    """The records of the public topics alone.

    `wire`: what stands before an event, by its schema (runtime.kafka.schema_ids).

    Source: CloudEvents 1.0, Kafka protocol binding, binary content mode.
    """
    lanes: dict[Lane, list[Outgoing]] = {}
    for changeset in outbound:
        lane_of = {schema: lanes.setdefault(Lane(topic, changeset.partition), []) for schema, topic in _TOPICS.items()}
        time = ("ce_time", rfc3339(changeset.known_at).encode())
        number, start = changeset.changeset, f"{changeset.offset}."
        for place, event in enumerate(changeset.net_events):
            kind, schema, entity, data = event
            if changeset.is_redrive:
                number = public_events.said_by(event)
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


def _push(lane: list[Outgoing], changeset: Outbound) -> None:
    key = topics.user_key(changeset.user)
    for message in browser_messages.messages(
        changeset.net_events, item_id=changeset.item_id, known_at=changeset.known_at
    ):
        position = f"{changeset.offset}.{message.place}".encode()
        lane.append(Outgoing(key, message.value, ((topics.HEADER_POSITION, position),)))
