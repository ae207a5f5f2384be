"""AsyncAPI 3 document of the public topics, built from the table of topics and the schemas. Pure.

Source: AsyncAPI 3.0.0 specification; bindings kafka 0.5.0.
"""

from typing import Any

from schemas.contract import descriptions, subjects
from schemas.contract.examples import Example, examples
from schemas.encoding import catalogue
from schemas.topics import DAY_MS, HEADER_POSITION, PARTITIONS_DEFAULT, PUBLIC, Topic, full_name

AVRO = "application/vnd.apache.avro+json;version=1.9.0"
WIRE = "application/vnd.confluent.avro"
BINDING_VERSION = "0.5.0"
_HEADERS = {
    "ce_specversion": "1.0",
    "ce_id": "the event's id, 32 hex digits: the same in every redelivery and republication",
    "ce_type": "the type of the event",
    "ce_time": "when Tartan knew it: RFC 3339 with microseconds, UTC",
    "ce_source": "tartan",
    "ce_subject": "the same as the key",
    HEADER_POSITION: "offset.index, two decimal numbers: keep the last of each partition, drop what is not above it",
}


def document(topic_prefix: str) -> dict[str, Any]:
    """Return the whole document, for topics with this prefix."""
    by_kind = examples(topic_prefix)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tartan's events",
            "version": "1.0.0",
            "description": "Bank data of an application's users, published to other teams. One record is one event; a"
            " record not above the last position read from its partition is a repeat. Full description: "
            "docs/events.md.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": WIRE,
        "channels": {topic.name: _channel(topic, topic_prefix) for topic in PUBLIC},
        "operations": {f"read.{topic.name}": _operation(topic) for topic in PUBLIC},
        "components": {
            "messages": {kind: _message(kind, topic, by_kind[kind]) for topic in PUBLIC for kind in topic.event_types},
            "messageTraits": {"event": _trait()},
            "schemas": {
                catalogue.FILES[number]: {"schemaFormat": AVRO, "schema": catalogue.full_schema(number)}
                for topic in PUBLIC
                for number in topic.schemas
            },
        },
    }


def _channel(topic: Topic, topic_prefix: str) -> dict[str, Any]:
    kafka = {
        "topic": full_name(topic, topic_prefix),
        "partitions": PARTITIONS_DEFAULT,
        "topicConfiguration": {
            "cleanup.policy": ["delete"],
            "retention.ms": topic.retention_ms,
            "max.message.bytes": topic.message_bytes_max,
        },
        "bindingVersion": BINDING_VERSION,
    }
    days = (topic.retention_ms or 0) // DAY_MS
    return {
        "address": full_name(topic, topic_prefix),
        "description": f"Key: {topic.key}. All events of a user are in one partition, in order. Kept for {days} days.",
        "messages": {kind: {"$ref": f"#/components/messages/{kind}"} for kind in topic.event_types},
        "bindings": {"kafka": kafka},
    }


def _operation(topic: Topic) -> dict[str, Any]:
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{topic.name}"},
        "summary": f"Read the topic {topic.name}",
        "messages": [{"$ref": f"#/channels/{topic.name}/messages/{kind}"} for kind in topic.event_types],
    }


def _message(kind: str, topic: Topic, example: Example) -> dict[str, Any]:
    written, versions = topic.schemas[-1], [catalogue.FILES[number] for number in topic.schemas]
    return {
        "name": kind,
        "title": kind,
        "summary": descriptions.EVENTS[kind],
        "description": f"Written by {catalogue.FILES[written]}; the topic can hold {', '.join(versions)}, each of"
        " which reads every other one.",
        "contentType": WIRE,
        "traits": [{"$ref": "#/components/messageTraits/event"}],
        "payload": {"$ref": f"#/components/schemas/{catalogue.FILES[written]}"},
        "examples": [{"name": kind, "headers": dict(example.headers), "payload": dict(example.value)}],
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": topic.key},
                "schemaIdLocation": "payload",
                "schemaIdPayloadEncoding": "confluent",
                "schemaLookupStrategy": "TopicNameStrategy",
                "bindingVersion": BINDING_VERSION,
            }
        },
        "x-schema-ids-without-a-registry": {catalogue.FILES[number]: number for number in topic.schemas},
        "x-compatibility": subjects.COMPATIBILITY,
    }


def _trait() -> dict[str, Any]:
    properties = {name: {"type": "string", "description": text} for name, text in _HEADERS.items()}
    return {"headers": {"type": "object", "required": list(_HEADERS), "properties": properties}}
