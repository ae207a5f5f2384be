"""Compare two payloads of the bank field by field."""

import json
from functools import cache
from typing import Any

from schemas.encoding import catalogue, codec

_JSON = "_json"


def changed_fields(before: bytes, before_schema: int, after: bytes, after_schema: int) -> list[str]:
    """Return the names of the fields in which two records differ, in the order of the newer schema.

    JSON texts that differ only in the order of keys or in white space are equal.
    Raises: Quarantine, where the bytes are no records of their schemas.
    """
    if before_schema == after_schema and before == after:
        return []
    names = _names(after_schema)
    if before_schema == after_schema:
        split = codec.splitter(after_schema)
        names = tuple(name for name, old, new in zip(names, split(before), split(after), strict=True) if old != new)
        if not any(name.endswith(_JSON) for name in names):
            return list(names)
    old, new = codec.decoder(before_schema)(before, 0)[0], codec.decoder(after_schema)(after, 0)[0]
    return [name for name in names if not _is_same(name, getattr(old, name, None), getattr(new, name))]


@cache
def _names(number: int) -> tuple[str, ...]:
    return tuple(entry["name"] for entry in catalogue.declared_schema(number)["fields"])


def _is_same(name: str, old: Any, new: Any) -> bool:
    if old == new:
        return True
    return bool(name.endswith(_JSON) and old is not None and new is not None and _parsed(old) == _parsed(new))


def _parsed(text: str) -> Any:
    # A number becomes a tuple, which JSON has none of: it equals neither true nor the same digits as a text.
    try:
        return json.loads(text, parse_float=lambda digits: (digits,), parse_int=lambda digits: (digits,))
    except (ValueError, RecursionError):
        return text
