"""Continuous API reads at a steady rate: failed answers, and answers that contradict earlier ones."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp

ANSWER_S_MAX = 30.0
CONCURRENCY = 16
"""Concurrent requests: one that waits delays the others by a sixteenth."""
SHOWN_MAX = 20
"""Failures and contradictions that are listed; all are counted."""
TRANSACTIONS, ACCOUNTS = "transactions", "accounts"


class Read(NamedTuple):
    """Request of a user's rows at the gateway."""

    user: str
    entity: str
    path: str
    query: Mapping[str, str] = {}


Check = Callable[[Read, Any], Sequence[str]]
"""Returns the contradictions in an answer."""


class ReadLoad:
    """Send reads at a rate, as far as the gateway keeps up; `begin` returns the check of an answer as a read begins."""

    def __init__(
        self, gateway_url: str, api_key: str, *, users: Sequence[str], rate_per_s: float, begin: Callable[[Read], Check]
    ) -> None:
        self._url = gateway_url
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._reads = [read for user in users for read in _reads_of(user)]
        self._rate_per_s = rate_per_s
        self._begin = begin
        self._tasks: list[asyncio.Task[None]] = []
        self._rng = random.Random(0)
        self._next_at = 0.0
        self.answered = self.failed = self.contradictory = 0
        self.failures: list[str] = []
        self.contradictions: list[str] = []

    @property
    def summary(self) -> dict[str, int]:
        """Counts for the command's result."""
        return {"reads": self.answered, "failed_reads": self.failed, "contradictory_reads": self.contradictory}

    async def __aenter__(self) -> Self:
        self._next_at = time.monotonic()
        self._tasks = [asyncio.create_task(self._read_all()) for _ in range(CONCURRENCY)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        for error in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(error, Exception) and problem is None:
                raise error

    async def _read_all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
        async with aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session:
            while True:
                now = time.monotonic()
                # Delayed reads are not made up for: users who have waited do not read faster afterwards.
                self._next_at = max(self._next_at, now - 1.0) + 1.0 / self._rate_per_s
                await asyncio.sleep(self._next_at - now)
                await self._read(session, self._rng.choice(self._reads))

    async def _read(self, session: aiohttp.ClientSession, read: Read) -> None:
        check = self._begin(read)
        try:
            async with session.get(self._url + read.path, params=read.query) as response:
                if response.status != HTTPStatus.OK:
                    self._fail(f"{read.path} answered {response.status}: {(await response.text())[:200]}")
                    return
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            self._fail(f"{read.path}: {type(error).__name__}: {error}")
            return
        self.answered += 1
        contradictions = check(read, answer)
        self.contradictory += len(contradictions)
        self.contradictions += contradictions[: SHOWN_MAX - len(self.contradictions)]

    def _fail(self, failure: str) -> None:
        self.failed += 1
        self.failures += [failure][: SHOWN_MAX - len(self.failures)]


def _reads_of(user: str) -> list[Read]:
    return [
        Read(user, TRANSACTIONS, f"/v1/users/{user}/transactions", {"limit": "50"}),
        Read(user, ACCOUNTS, f"/v1/users/{user}/accounts"),
    ]


class MonotonicReads:
    """Check that no read returns an older version of a row than a read that ended before it began."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, ...], int] = {}

    def begin(self, _: Read) -> Check:
        """Return the check of a read that begins now; concurrent reads may return newer versions."""
        before = dict(self._versions)
        return lambda read, answer: self._check(read, answer, before)

    def _check(self, read: Read, answer: Any, before: Mapping[tuple[str, ...], int]) -> list[str]:
        contradictions = []
        for row in answer[read.entity]:
            key = (row["id"],) if read.entity == TRANSACTIONS else (row["item_id"], row["account_id"])
            if row["version"] < before.get(key, 0):
                contradictions.append(f"{read.path}: {'/'.join(key)} was version {before[key]} and is {row['version']}")
            self._versions[key] = max(row["version"], self._versions.get(key, 0))
        return contradictions
