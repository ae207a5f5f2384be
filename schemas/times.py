"""Moments as the log writes them: microseconds since 1970, UTC, exact both ways. Core."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(at: datetime) -> int:
    """Write a moment. Integers all the way: a float of seconds is off by one now and then."""
    return (at - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """Read a moment."""
    return _EPOCH + value * _MICROSECOND
