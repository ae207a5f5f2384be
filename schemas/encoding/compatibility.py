"""Compatibility of schema versions, by Apache Avro's own checker. Pure."""

import itertools
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import avro.errors
import avro.schema
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

from schemas.encoding import catalogue


class Incompatible(NamedTuple):
    """A reader's schema that cannot read a writer's, with the reasons."""

    reader: str
    writer: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.reader} cannot read {self.writer}: {'; '.join(self.reasons)}"


def incompatible_families() -> list[Incompatible]:
    """Return all pairs of versions of one schema, in either direction, that do not read each other.

    The rule also holds for schemas of the sealed log: in a rolling deploy old and new processes read the same log, and
    the log is read for ever.
    """
    return [
        pair
        for numbers in catalogue.families().values()
        for pair in incompatible_pairs({catalogue.FILES[number]: catalogue.schema_text(number) for number in numbers})
    ]


def incompatible_pairs(texts: Mapping[str, str]) -> list[Incompatible]:
    """Return all pairs of these schemas, by name, that do not read each other.

    Raises: ValueError, where a text is no Avro schema.
    """
    return [
        Incompatible(reader, writer, reasons)
        for reader, writer in itertools.permutations(texts, 2)
        if (reasons := _reasons(texts[reader], texts[writer]))
    ]


def _reasons(reader: str, writer: str) -> tuple[str, ...]:
    answer = ReaderWriterCompatibilityChecker().get_compatibility(_parsed(reader), _parsed(writer))
    if answer.compatibility is SchemaCompatibilityType.compatible:
        return ()
    return tuple(sorted({str(message) for message in answer.messages})) or ("Avro gives no reason",)


@cache
def _parsed(text: str) -> Any:
    try:
        return avro.schema.make_avsc_object(json.loads(text))
    except avro.errors.AvroException as error:
        raise ValueError(f"no Avro schema: {error}") from error
