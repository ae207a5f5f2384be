"""What differs between two sayings of the bank."""

import json
from functools import cache
from typing import Any

from schemas.encoding import catalogue, codec

_JSON = "_json"


def changed_fields(before: bytes, before_schema: int, after: bytes, after_schema: int) -> list[str]:
    """The names of the fields in which two records differ, in the order of the newer schema.

    JSON texts that differ only in the order of keys or in white space are equal.
    Raises: Quarantine, where the bytes are no records of their schemas.
    """
    if before_schema != after_schema:
        old, new = codec.decoder(before_schema)(before, 0)[0], codec.decoder(after_schema)(after, 0)[0]
        return [name for name in _names(after_schema) if not _same(name, getattr(old, name, None), getattr(new, name))]
    if before == after:
        return []
    split = codec.splitter(after_schema)
    differ = [
        name for name, old, new in zip(_names(after_schema), split(before), split(after), strict=True) if old != new
    ]
    if any(name.endswith(_JSON) for name in differ):
        old, new = codec.decoder(before_schema)(before, 0)[0], codec.decoder(after_schema)(after, 0)[0]
        return [name for name in differ if not _same(name, getattr(old, name), getattr(new, name))]
    return differ


@cache
def _names(number: int) -> tuple[str, ...]:
    return tuple(entry["name"] for entry in catalogue.declared_schema(number)["fields"])


def _same(name: str, old: Any, new: Any) -> bool:
    if old == new:
        return True
    return bool(name.endswith(_JSON) and old is not None and new is not None and _parsed(old) == _parsed(new))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_float=_number, parse_int=_number)
    except (ValueError, RecursionError):
        return text


def _number(written: str) -> tuple[str]:
    # A tuple, which JSON has none of: a number equals neither true nor the same digits as a text.
    return (written,)
