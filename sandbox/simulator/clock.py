"""Provide the time as a port, so that the bank never reads the machine's clock."""

import datetime as dt
from typing import Protocol


class Clock(Protocol):
    """Return the time. Units: aware UTC."""

    def now(self) -> dt.datetime:
        """Return the current time."""
        ...


class RealClock:
    """Run like the machine's clock, shifted to begin at `start_at`: the dates of a history depend on it."""

    def __init__(self, start_at: dt.datetime | None = None) -> None:
        self._shift = start_at - dt.datetime.now(dt.UTC) if start_at else dt.timedelta()

    def now(self) -> dt.datetime:
        """Return the current time."""
        return dt.datetime.now(dt.UTC) + self._shift


class ManualClock:
    """Move only on `advance`."""

    def __init__(self, start_at: dt.datetime) -> None:
        self._now = start_at

    def now(self) -> dt.datetime:
        """Return the current time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move forward; time never goes back."""
        assert seconds >= 0
        self._now += dt.timedelta(seconds=seconds)
