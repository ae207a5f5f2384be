"""Cursors of pages: opaque to clients, bound to the filters that they were made with."""

import base64
import binascii
import datetime
import hashlib
from dataclasses import astuple

import msgspec

from gateway.problems import Fault, invalid
from projections.queries import TransactionFilter

CURSOR_CHARS_MAX = 200
_VERSION = 1
_FILTER_BYTES = 8

After = tuple[datetime.date, bytes]
"""Where a page begins: date and own id of the last row before it."""

_Written = tuple[int, str, bytes, bytes]


def write(after: After, which: TransactionFilter) -> str:
    """Write where the next page begins."""
    written: _Written = (_VERSION, after[0].isoformat(), after[1], _digest(which))
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(written)).rstrip(b"=").decode()


def read(cursor: str, which: TransactionFilter) -> After:
    """Read a cursor that `write` gave for the same filters.

    Raises: Problem 400. With other filters it would skip rows in silence.
    """
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)) if len(cursor) <= CURSOR_CHARS_MAX else b""
        version, date, own_id, digest = msgspec.msgpack.decode(raw, type=_Written)
        after = (datetime.date.fromisoformat(date), own_id)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise invalid(Fault("cursor", "is none that was given here", cursor[:CURSOR_CHARS_MAX])) from error
    if version != _VERSION:
        raise invalid(Fault("cursor", "was given by another version: begin again without it", cursor))
    if digest != _digest(which):
        raise invalid(Fault("cursor", "was given for other filters: begin again without it", cursor))
    return after


def _digest(which: TransactionFilter) -> bytes:
    return hashlib.blake2b(repr(astuple(which)).encode(), digest_size=_FILTER_BYTES).digest()
