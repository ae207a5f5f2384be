"""Times in the log: microseconds since 1970, UTC, exact in both directions. Pure."""

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import overload

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_US = 1_000_000


@overload
def to_micros(time: datetime) -> int: ...
@overload
def to_micros(time: None) -> None: ...
@overload
def to_micros(time: datetime | None) -> int | None: ...
def to_micros(time: datetime | None) -> int | None:
    """Convert an aware time to microseconds since 1970; None stays None."""
    if time is None:
        return None
    # Integers only: a float of seconds is off by one microsecond now and then.
    since = time - _EPOCH
    return (since.days * 86_400 + since.seconds) * SECOND_US + since.microseconds


@overload
def from_micros(micros: int) -> datetime: ...
@overload
def from_micros(micros: None) -> None: ...
@overload
def from_micros(micros: int | None) -> datetime | None: ...
def from_micros(micros: int | None) -> datetime | None:
    """Convert microseconds since 1970 to an aware time in UTC; None stays None."""
    return None if micros is None else _EPOCH + timedelta(microseconds=micros)


def rfc3339(micros: int) -> str:
    """Return a time in RFC 3339 with microseconds and `Z`, from microseconds since 1970."""
    return from_micros(micros).isoformat(timespec="microseconds")[:-6] + "Z"


@lru_cache(maxsize=10_000)
def is_date(text: str) -> bool:
    """Return whether a text is a calendar date as YYYY-MM-DD, from year 1 to 9999."""
    try:
        return len(text) == len("2026-01-31") and text[4] == text[7] == "-" and bool(date.fromisoformat(text))
    except ValueError:
        return False
