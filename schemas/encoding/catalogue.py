"""Catalogue of schemas: a number for ever for each `.avsc` file. Pure.

Stored bytes have these numbers, so the log never depends on a registry's numbering.
The table only grows: a changed schema is a new file with a new number.
"""

import json
from functools import cache
from importlib import resources
from typing import Any

import fastavro
import fastavro.schema

from schemas.errors import Quarantine

FILES: dict[int, str] = {
    1: "transaction.v1",
    2: "account.v1",
    3: "removal.v1",
    4: "item.v1",
    5: "history.v1",
    6: "edit.v1",
    7: "decision.v1",
    8: "events.v1",
    9: "head.v1",
    10: "webhook.v1",
    11: "transaction_event.v1",
    12: "balance_event.v1",
    13: "item_event.v1",
    14: "history.v2",
    15: "dead_letter.v1",
    16: "transaction_event.v2",
}

TRANSACTION, ACCOUNT, REMOVAL, ITEM, HISTORY_1, EDIT, DECISION = 1, 2, 3, 4, 5, 6, 7
EVENTS, HEAD, WEBHOOK, TRANSACTION_EVENT_1, BALANCE_EVENT, ITEM_EVENT = 8, 9, 10, 11, 12, 13
HISTORY, DEAD_LETTER, TRANSACTION_EVENT = 14, 15, 16

_PARTS_OF: dict[int, tuple[int, ...]] = {
    TRANSACTION_EVENT_1: (TRANSACTION,),
    TRANSACTION_EVENT: (TRANSACTION,),
    BALANCE_EVENT: (ACCOUNT,),
    ITEM_EVENT: (ITEM,),
}
"""Public events nest the log's own records, so an event's bytes are cut from the log's."""


def families() -> dict[str, tuple[int, ...]]:
    """Return the numbers of all versions of each schema, by its name without version, oldest first."""
    numbers: dict[str, tuple[int, ...]] = {}
    for number, file in FILES.items():
        name = file.partition(".")[0]
        numbers[name] = (*numbers.get(name, ()), number)
    return numbers


@cache
def declared_schema(number: int) -> dict[str, Any]:
    """Return the schema of a file, with names of other schemas unresolved.

    Raises: Quarantine, where no schema has this number.
    """
    if number not in FILES:
        raise Quarantine(f"no schema has the number {number}; this code has 1 to {max(FILES)}")
    text = resources.files("schemas").joinpath(f"avro/{FILES[number]}.avsc").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def full_schema(number: int) -> dict[str, Any]:
    """Return the schema with the records that it nests written out, as a registry needs it."""
    named = {f"tartan.{part['name']}": part for part in map(declared_schema, _PARTS_OF.get(number, ()))}
    whole: dict[str, Any] = _inlined(declared_schema(number), named, set())
    return whole


@cache
def schema_text(number: int) -> str:
    """Return the full schema as a registry stores it: JSON without white space."""
    return json.dumps(full_schema(number), separators=(",", ":"), ensure_ascii=False)


def normalized(schema: Any) -> Any:
    """Return a schema with full names: registries write the same one with and without namespaces.

    Raises: Quarantine, where it is no Avro schema.
    """
    try:
        return fastavro.parse_schema(schema, _write_hint=False)
    except (fastavro.schema.SchemaParseException, ValueError, LookupError, TypeError, RecursionError) as error:
        raise Quarantine("that is no Avro schema") from error


@cache
def parsed_schema(number: int) -> Any:
    """Return the full schema parsed by fastavro."""
    return fastavro.parse_schema(full_schema(number))


def _inlined(schema: Any, named: dict[str, Any], seen: set[str]) -> Any:
    """Replace the first use of each named record by its declaration; later uses stay names, as Avro requires."""
    if isinstance(schema, str):
        if schema in named and schema not in seen:
            seen.add(schema)
            return _inlined(named[schema], named, seen)
        return schema
    if isinstance(schema, list):
        return [_inlined(branch, named, seen) for branch in schema]
    if isinstance(schema, dict):
        nesting = {key: value for key, value in schema.items() if key in ("type", "items", "values", "fields")}
        return {**schema, **{key: _inlined(value, named, seen) for key, value in nesting.items()}}
    return schema
