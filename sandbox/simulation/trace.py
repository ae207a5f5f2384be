"""Record the events of a run, line by line: to read where a run fails, and to compare two runs of a seed."""

import asyncio
from collections import deque
from hashlib import blake2b

LINES_MAX = 20_000
"""Lines kept; a run has a few thousand, and a failure is near its end."""


class Trace:
    """Record lines with their virtual time."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._lines: deque[str] = deque(maxlen=LINES_MAX)
        self._hash = blake2b(digest_size=16)

    def note(self, text: str) -> None:
        """Record an event."""
        line = f"{asyncio.get_running_loop().time():12.3f} {text}"
        self._hash.update(line.encode())
        self._lines.append(line)
        if self._shown:
            print(line)

    def digest(self) -> str:
        """Return a hash that is equal for two runs with the same events."""
        return self._hash.hexdigest()

    def about(self, word: str, *, lines_max: int) -> list[str]:
        """Return the last lines that contain a word."""
        return [line for line in self._lines if word in line][-lines_max:]
