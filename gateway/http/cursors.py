"""Page cursors: encode and check the position of a page, bound to the filters or the list of its first page."""

import base64
import binascii
import datetime
import hashlib
from dataclasses import astuple
from typing import Any

import msgspec

from gateway.http.problems import Fault, Problem, invalid
from projections.read.queries import TransactionFilter
from schemas.money import BIGINT_MAX

CURSOR_CHARS_MAX = 200
_VERSION = 1
_DIGEST_BYTES = 8

RowPosition = tuple[datetime.date, bytes]
"""Date and own id of the last row of a page."""
Scope = TransactionFilter | str
"""Filters, or the name of the list, that a cursor is valid for."""


def write(position: RowPosition, scope: Scope) -> str:
    """Encode the last row of a page."""
    return _encode(scope, position[0].isoformat(), position[1])


def read(cursor: str, scope: Scope) -> RowPosition:
    """Decode a cursor of `write`.

    Raises: Problem 400, where it belongs to another scope: with other filters it would skip rows in silence.
    """
    date, own_id = _decode(cursor, scope, tuple[int, str, bytes, bytes])
    try:
        return datetime.date.fromisoformat(date), own_id
    except ValueError as error:
        raise _unknown(cursor) from error


def write_number(number: int, scope: str) -> str:
    """Encode the number of the last row of a page."""
    return _encode(scope, number)


def read_number(cursor: str, scope: str) -> int:
    """Decode a cursor of `write_number`.

    Raises: Problem 400, where it belongs to another scope.
    """
    [number] = _decode(cursor, scope, tuple[int, int, bytes])
    if not 0 <= number <= BIGINT_MAX:
        raise _unknown(cursor)
    return int(number)


def _encode(scope: Scope, *position: str | bytes | int) -> str:
    fields = (_VERSION, *position, _digest(scope))
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(fields)).rstrip(b"=").decode()


def _decode(cursor: str, scope: Scope, shape: Any) -> list[Any]:
    """Return the fields between version and digest, after a check of both."""
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)) if len(cursor) <= CURSOR_CHARS_MAX else b""
        fields: tuple[Any, ...] = msgspec.msgpack.decode(raw, type=shape)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise _unknown(cursor) from error
    version, *position, digest = fields
    if version != _VERSION:
        raise invalid(Fault("cursor", "was given by another version: begin again without it", cursor))
    if digest != _digest(scope):
        raise invalid(Fault("cursor", "was given for other filters: begin again without it", cursor))
    return position


def _unknown(cursor: str) -> Problem:
    return invalid(Fault("cursor", "is none that was given here", cursor[:CURSOR_CHARS_MAX]))


def _digest(scope: Scope) -> bytes:
    text = scope if isinstance(scope, str) else repr(astuple(scope))
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()
