"""Time as a port: the bank never asks the machine what time it is."""

import datetime as dt
from typing import Protocol


class Clock(Protocol):
    """Tells the time. Units: aware UTC."""

    def now(self) -> dt.datetime:
        """Give the present moment."""
        ...


class RealClock:
    """The machine's clock, or one that runs like it from another start.

    `start_at` makes dates and times of a run the same every day: the dates of a history depend on it.
    """

    def __init__(self, start_at: dt.datetime | None = None) -> None:
        self._shift = start_at - dt.datetime.now(dt.UTC) if start_at else dt.timedelta()

    def now(self) -> dt.datetime:
        """Give the present moment."""
        return dt.datetime.now(dt.UTC) + self._shift


class ManualClock:
    """A clock that moves only when it is told to."""

    def __init__(self, start_at: dt.datetime) -> None:
        self._now = start_at

    def now(self) -> dt.datetime:
        """Give the moment at which the clock stands."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on; time never goes back."""
        assert seconds >= 0
        self._now += dt.timedelta(seconds=seconds)
