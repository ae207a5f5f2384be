"""Crash points: named places where a test can kill or stop the process.

`TARTAN_CRASH_AT=project.after_commit:3` makes the process kill itself at the third time, `TARTAN_STOP_AT` stops it
until it gets SIGCONT. Both are unset outside of tests; a point then costs two comparisons.
"""

import os
import signal
from enum import StrEnum

VARIABLE = "TARTAN_CRASH_AT"
STOP_VARIABLE = "TARTAN_STOP_AT"


class CrashPoint(StrEnum):
    """The crash points, at which a crash must lose and double nothing (docs/architecture.md)."""

    INGEST_BEFORE_APPEND = "ingest.before_append"
    INGEST_AFTER_APPEND = "ingest.after_append"
    MARK_BEFORE_COMMIT = "mark_due.before_commit"
    MARK_AFTER_COMMIT = "mark_due.after_commit"
    FETCH_CLAIMED = "fetch_deltas.claimed"
    FETCH_BETWEEN_PAGES = "fetch_deltas.between_pages"
    FETCH_BEFORE_APPEND = "fetch_deltas.before_append"
    FETCH_AFTER_PART = "fetch_deltas.after_part"
    FETCH_AFTER_APPEND = "fetch_deltas.after_append"
    FETCH_AFTER_RELEASE = "fetch_deltas.after_release"
    FOLLOW_BEFORE_COMMIT = "follow_heads.before_commit"
    FOLLOW_AFTER_COMMIT = "follow_heads.after_commit"
    PROJECT_BEFORE_COMMIT = "project.before_commit"
    PROJECT_AFTER_COMMIT = "project.after_commit"
    PUBLISH_BETWEEN_TOPICS = "publish.between_topics"
    PUBLISH_AFTER_SEND = "publish.after_send"
    SWAP_LOCKED = "swap.locked"
    SWAP_BEFORE_COMMIT = "swap.before_commit"
    SWAP_AFTER_COMMIT = "swap.after_commit"


class _Plan:
    """The point at which this process stops or dies, and the number of times left."""

    def __init__(self, text: str | None, signal_number: signal.Signals) -> None:
        name, _, times = (text or "").partition(":")
        self.point = CrashPoint(name) if name else None
        self.left = int(times or "1")
        self._signal = signal_number

    def count(self) -> None:
        """Count one time, and send the signal at the last."""
        self.left -= 1
        if self.left <= 0:
            self.point = None  # after SIGCONT it goes on
            os.kill(os.getpid(), self._signal)


_dies = _Plan(os.environ.get(VARIABLE), signal.SIGKILL)
_stops = _Plan(os.environ.get(STOP_VARIABLE), signal.SIGSTOP)


def reach(point: CrashPoint) -> None:
    """Die or stop here, as by a power cut or a sleeping machine, if a test requested it."""
    if point is _dies.point:
        _dies.count()
    if point is _stops.point:
        _stops.count()
