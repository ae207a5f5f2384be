"""Applications that read all the time: how often, what failed, and what was read that cannot have been."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp

ANSWER_S_MAX = 30.0
AT_ONCE = 16
"""Requests under way at the same time. One that waits holds the others up by a sixteenth."""
SHOWN_MAX = 20
"""Failures and contradictions that are told; all are counted."""


class Read(NamedTuple):
    """A path of the gateway of `user`, and what of it is looked at."""

    user: str
    what: str
    path: str
    query: Mapping[str, str] = {}


Check = Callable[[Read, Any], Sequence[str]]
"""What is wrong with an answer, in words."""


class ReadLoad:
    """Reads at a rate, as well as the gateway keeps up; `begun` gives the check of an answer as a read begins."""

    def __init__(
        self,
        gateway_url: str,
        api_key: str,
        *,
        reads: Sequence[Read],
        rate_per_s: float,
        begun: Callable[[Read], Check],
    ) -> None:
        self._url = gateway_url
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._reads = reads
        self._rate_per_s = rate_per_s
        self._begun = begun
        self._tasks: list[asyncio.Task[None]] = []
        self._chosen = random.Random(0)
        self._due = 0.0
        self.answered = self.failed = self.wrong = 0
        self.failures: list[str] = []
        self.contradictions: list[str] = []

    async def __aenter__(self) -> Self:
        self._due = time.monotonic()
        self._tasks = [asyncio.create_task(self._read_all()) for _ in range(AT_ONCE)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception) and problem is None:
                raise error

    async def _read_all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
        async with aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session:
            while True:
                await self._wait()
                await self._read(session, self._chosen.choice(self._reads))

    async def _wait(self) -> None:
        now = time.monotonic()
        # ReadLoad that were held up do not catch up: they read as users do, who have waited.
        self._due = max(self._due, now - 1.0) + 1.0 / self._rate_per_s
        await asyncio.sleep(self._due - now)

    async def _read(self, session: aiohttp.ClientSession, read: Read) -> None:
        check = self._begun(read)
        try:
            async with session.get(self._url + read.path, params=read.query) as answer:
                if answer.status != HTTPStatus.OK:
                    self._fail(f"{read.path} answered {answer.status}: {(await answer.text())[:200]}")
                    return
                told = await answer.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            self._fail(f"{read.path}: {type(error).__name__}: {error}")
            return
        self.answered += 1
        wrong = check(read, told)
        self.wrong += len(wrong)
        self.contradictions += wrong[: SHOWN_MAX - len(self.contradictions)]

    def _fail(self, how: str) -> None:
        self.failed += 1
        self.failures += [how][: SHOWN_MAX - len(self.failures)]


TRANSACTIONS, ACCOUNTS = "transactions", "accounts"


def of_user(user: str) -> list[Read]:
    """What applications show of a user."""
    return [
        Read(user, TRANSACTIONS, f"/v1/users/{user}/transactions", {"limit": "50"}),
        Read(user, ACCOUNTS, f"/v1/users/{user}/accounts"),
    ]


class MonotonicReads:
    """Checks that what was read once never reads older: versions of transactions and accounts only grow."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], int] = {}

    def begun(self, _: Read) -> Check:
        """The check of a read that begins now: what others read meanwhile may be newer."""
        seen = dict(self._seen)
        return lambda read, told: self._check(read, told, seen)

    def _check(self, read: Read, told: Any, seen: Mapping[tuple[str, ...], int]) -> list[str]:
        wrong = []
        for row in told[read.what]:
            key = (row["id"],) if read.what == TRANSACTIONS else (row["item_id"], row["account_id"])
            if row["version"] < seen.get(key, 0):
                wrong.append(f"{read.path}: {'/'.join(key)} was version {seen[key]} and is {row['version']}")
            self._seen[key] = max(row["version"], self._seen.get(key, 0))
        return wrong
