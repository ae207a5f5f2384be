"""Subjects of a schema registry: schema versions of each public topic's values. Pure.

A subject is named as Confluent's TopicNameStrategy does, `<topic>-value`; keys are plain text and have none.
Source: Confluent Schema Registry, Schema Registry API reference; wire format: magic byte 0, id in 4 bytes, Avro.
"""

from collections.abc import Mapping
from typing import NamedTuple

from schemas.encoding import catalogue
from schemas.topics import PUBLIC, full_name

COMPATIBILITY = "FULL_TRANSITIVE"
"""Each version reads what every other one wrote: readers and writers are upgraded in any order."""

MAGIC = b"\x00"


class Version(NamedTuple):
    """A schema under a subject. `schema` is its number in the catalogue, `version` counts from 1 in the subject."""

    subject: str
    version: int
    schema: int


def versions(topic_prefix: str) -> tuple[Version, ...]:
    """Return every version of every subject, in the order of the table of topics."""
    return tuple(
        Version(f"{full_name(topic, topic_prefix)}-value", number, schema)
        for topic in PUBLIC
        for number, schema in enumerate(topic.schemas, start=1)
    )


def own_ids() -> dict[int, int]:
    """Return the ids on the wire where there is no registry, by catalogue number: the number itself."""
    return {schema: schema for topic in PUBLIC for schema in topic.schemas}


def wire_prefixes(ids: Mapping[int, int]) -> dict[int, bytes]:
    """Return the wire format's prefix by catalogue number. `ids`: catalogue number to the registry's id."""
    return {schema: MAGIC + number.to_bytes(4, "big") for schema, number in ids.items()}


def schema_of_file(name: str) -> int | None:
    """Return the number of a schema by its number or file name without ending, for example `transaction_event.v2`."""
    if name.isascii() and name.isdigit():
        return int(name) if int(name) in catalogue.FILES else None
    return next((number for number, file in catalogue.FILES.items() if file == name.removesuffix(".avsc")), None)
