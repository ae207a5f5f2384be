"""Cursors of pages: opaque to clients, bound to the filters or the Item that they were made with."""

import base64
import binascii
import datetime
import hashlib
from dataclasses import astuple
from typing import NamedTuple, TypeVar

import msgspec

from gateway.http.problems import Fault, Problem, invalid
from projections.read.queries import TransactionFilter

Shape = TypeVar("Shape")

CURSOR_CHARS_MAX = 200
_VERSION = 1
_FILTER_BYTES = 8

After = tuple[datetime.date, bytes]
"""Where a page begins: date and own id of the last row before it."""


class _Written(NamedTuple):
    version: int
    date: str
    own_id: bytes
    digest: bytes


class _NumberWritten(NamedTuple):
    version: int
    number: int
    digest: bytes


def write(after: After, which: TransactionFilter | str) -> str:
    """Write where the next page begins."""
    return _encoded(_Written(_VERSION, after[0].isoformat(), after[1], _digest(which)))


def read(cursor: str, which: TransactionFilter | str) -> After:
    """Read a cursor that `write` gave for the same filters.

    Raises: Problem 400. With other filters it would skip rows in silence.
    """
    written = _decoded(cursor, _Written)
    _check(cursor, written, _digest(which))
    try:
        return datetime.date.fromisoformat(written.date), written.own_id
    except ValueError as error:
        raise _foreign(cursor) from error


def write_number(number: int, scope: str) -> str:
    """Write the number of the last row of a page of a list that is named by its scope."""
    return _encoded(_NumberWritten(_VERSION, number, _digest(scope)))


def read_number(cursor: str, scope: str) -> int:
    """Read a cursor that `write_number` gave for the same scope.

    Raises: Problem 400.
    """
    written = _decoded(cursor, _NumberWritten)
    _check(cursor, written, _digest(scope))
    return written.number


def _encoded(written: _Written | _NumberWritten) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(written)).rstrip(b"=").decode()


def _decoded(cursor: str, shape: type[Shape]) -> Shape:
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)) if len(cursor) <= CURSOR_CHARS_MAX else b""
        return msgspec.msgpack.decode(raw, type=shape)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise _foreign(cursor) from error


def _check(cursor: str, written: _Written | _NumberWritten, wanted: bytes) -> None:
    if written.version != _VERSION:
        raise invalid(Fault("cursor", "was given by another version: begin again without it", cursor))
    if written.digest != wanted:
        raise invalid(Fault("cursor", "was given for other filters: begin again without it", cursor))


def _foreign(cursor: str) -> Problem:
    return invalid(Fault("cursor", "is none that was given here", cursor[:CURSOR_CHARS_MAX]))


def _digest(of: TransactionFilter | str) -> bytes:
    text = of if isinstance(of, str) else repr(astuple(of))
    return hashlib.blake2b(text.encode(), digest_size=_FILTER_BYTES).digest()
