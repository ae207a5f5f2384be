"""Encode values in the binary form of Postgres's COPY: each field is its length (4 bytes, big-endian) and its bytes.

Source: PostgreSQL, COPY, "Binary Format"; numeric: src/backend/utils/adt/numeric.c, numeric_recv.
"""

import datetime
import struct

from schemas.errors import Quarantine

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
TRUE, FALSE = b"\0\0\0\1\1", b"\0\0\0\1\0"

_LENGTHS_MAX = 8192
LENGTHS = tuple(struct.pack(">i", length) for length in range(_LENGTHS_MAX))
"""Length prefixes of texts and bytes; longer ones are computed."""

_EPOCH_DAY = datetime.date(2000, 1, 1).toordinal()
_BEFORE_ALL, _AFTER_ALL = -(2**31), 2**31 - 1
"""Postgres' days for -infinity and infinity. asyncpg writes Python's first and last date so, and this does too."""
EPOCH_US = 946_684_800_000_000
"""Postgres counts days and microseconds from 2000-01-01, Tartan microseconds from 1970-01-01."""
_NUMERIC_NEGATIVE = 0x4000

smallint = struct.Struct(">ih").pack
integer = struct.Struct(">ii").pack
bigint = struct.Struct(">iq").pack
_numeric_header = struct.Struct(">ihhhh").pack


def length(size: int) -> bytes:
    """Encode the length prefix of a field of `size` bytes."""
    return LENGTHS[size] if size < _LENGTHS_MAX else struct.pack(">i", size)


def raw(value: bytes | None) -> bytes:
    """Encode a bytea field."""
    return NULL if value is None else length(len(value)) + value


def text(value: str | None) -> bytes:
    """Encode a text field."""
    if value is None:
        return NULL
    encoded = value.encode()
    size = len(encoded)
    return (LENGTHS[size] if size < _LENGTHS_MAX else struct.pack(">i", size)) + encoded


def jsonb(value: str | None) -> bytes:
    """Encode a jsonb field from JSON text."""
    return NULL if value is None else raw(b"\1" + value.encode())


def int2(value: int) -> bytes:
    """Encode a smallint field."""
    return smallint(2, value)


def int4(value: int | None) -> bytes:
    """Encode an integer field."""
    return NULL if value is None else integer(4, value)


def int8(value: int) -> bytes:
    """Encode a bigint field."""
    return bigint(8, value)


def moment(microseconds: int | None) -> bytes:
    """Encode a timestamptz field. Units: microseconds since 1970, UTC."""
    return NULL if microseconds is None else bigint(8, microseconds - EPOCH_US)


def date(value: str) -> bytes:
    """Encode a date field from ISO 8601 text; Python's first date is -infinity, its last one infinity.

    Raises: Quarantine, where the text is no date.
    """
    try:
        day = datetime.date.fromisoformat(value)
    except ValueError:
        raise Quarantine("a date is none of ISO 8601") from None
    if day == datetime.date.min:
        return integer(4, _BEFORE_ALL)
    return integer(4, _AFTER_ALL if day == datetime.date.max else day.toordinal() - _EPOCH_DAY)


def read_date(field: bytes) -> datetime.date:
    """Decode a date field."""
    day = int.from_bytes(field[4:], "big", signed=True)
    if day == _BEFORE_ALL:
        return datetime.date.min
    return datetime.date.max if day == _AFTER_ALL else datetime.date.fromordinal(day + _EPOCH_DAY)


def numeric(value: int) -> bytes:
    """Encode a numeric field from an integer: base 10,000 digits, most significant first, without trailing zeros."""
    digits: list[int] = []
    rest = abs(value)
    while rest:
        rest, digit = divmod(rest, 10_000)
        digits.append(digit)
    weight = max(len(digits) - 1, 0)
    while digits and not digits[0]:
        del digits[0]
    digits.reverse()
    sign = _NUMERIC_NEGATIVE if value < 0 else 0
    return _numeric_header(8 + 2 * len(digits), len(digits), weight, sign, 0) + struct.pack(f">{len(digits)}H", *digits)
