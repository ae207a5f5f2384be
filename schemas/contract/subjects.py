"""The subjects of a schema registry: which versions of which schema the values of each public topic have. Pure.

A subject is named as Confluent's TopicNameStrategy does, `<topic>-value`; keys are plain text and have none.
Source: Confluent Schema Registry, Schema Registry API reference; wire format: magic byte 0, id in 4 bytes, Avro.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from schemas.encoding import catalogue
from schemas.errors import Quarantine
from schemas.topics import PUBLIC, full_name

COMPATIBILITY = "FULL_TRANSITIVE"
"""Each version reads what every other one wrote: readers and writers are upgraded in any order."""

MAGIC = b"\x00"
PREFIX_BYTES = 5


class Version(NamedTuple):
    """A schema under a subject. `schema` is its number in the catalogue, `version` counts from 1 in the subject."""

    subject: str
    version: int
    schema: int


def versions(topic_prefix: str) -> tuple[Version, ...]:
    """Every version of every subject, in the order of the table of topics."""
    return tuple(_versions(topic_prefix))


def _versions(topic_prefix: str) -> Iterator[Version]:
    for topic in PUBLIC:
        subject = f"{full_name(topic, topic_prefix)}-value"
        for number, schema in enumerate(topic.schemas, start=1):
            yield Version(subject, number, schema)


def own_ids() -> dict[int, int]:
    """Catalogue number to id on the wire where there is no registry: the number itself."""
    return {schema: schema for topic in PUBLIC for schema in topic.schemas}


def wire_prefixes(ids: Mapping[int, int]) -> dict[int, bytes]:
    """What stands before an event's bytes, by catalogue number. `ids`: catalogue number to the registry's id."""
    return {schema: MAGIC + number.to_bytes(PREFIX_BYTES - 1, "big") for schema, number in ids.items()}


def id_of(value: bytes) -> int:
    """The schema's id in a published value.

    Raises: Quarantine, where the value has not the wire format.
    """
    if value[:1] != MAGIC or len(value) < PREFIX_BYTES:
        raise Quarantine(f"a value of {len(value)} bytes does not begin with byte 0 and a schema's id")
    return int.from_bytes(value[1:PREFIX_BYTES], "big")


def schema_of_file(name: str) -> int | None:
    """The number of a schema by its number or its file's name without ending, as `transaction_event.v2`."""
    if name.isascii() and name.isdigit():
        return int(name) if int(name) in catalogue.FILES else None
    return next((number for number, file in catalogue.FILES.items() if file == name.removesuffix(".avsc")), None)
