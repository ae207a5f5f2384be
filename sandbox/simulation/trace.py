"""What happened in a run, line by line: to be read where it fails, and hashed to see that a seed repeats itself."""

import asyncio
from collections import deque
from hashlib import blake2b

LINES_MAX = 20_000
"""Lines kept; a run has a few thousand, and its end is what shows a failure."""


class Trace:
    """Lines with the virtual time of each."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._lines: deque[str] = deque(maxlen=LINES_MAX)
        self._hash = blake2b(digest_size=16)

    def note(self, text: str) -> None:
        """Note what happens now."""
        line = f"{asyncio.get_running_loop().time():12.3f} {text}"
        self._hash.update(line.encode())
        self._lines.append(line)
        if self._shown:
            print(line)

    def digest(self) -> str:
        """One line that is the same for two runs in which the same happened."""
        return self._hash.hexdigest()

    def about(self, word: str, *, lines_max: int) -> list[str]:
        """The last lines that name something."""
        return [line for line in self._lines if word in line][-lines_max:]
