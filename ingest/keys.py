"""Plaid's public keys, kept: one question a key, none for what is known not to exist, few for strangers' ids.

An attacker chooses the key id of a forged token, so every unknown id would otherwise be a call to Plaid.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ingest.metrics import KEY_FETCHES
from ingest.reasons import Reason, Refused
from ingest.verification import VerificationKey, read_key
from schemas.errors import Retry

FRESH_S = 3600.0
"""A key is asked for again after an hour, so a key that Plaid ended is noticed without a new one appearing."""

KEPT_S_MAX = 24 * 3600.0
"""While Plaid does not answer, a key stays good for a day: longer than its outages, and than its webhook retries."""

RETRY_S = 60.0
"""After a failed renewal the old key serves this long before Plaid is asked again."""

REFUSED_S = 300.0
"""How long an unknown, ended or unusable key stays refused without a question."""

REFUSED_MAX = 10_000
"""Refused ids kept, about 200 bytes each. More, and the oldest is forgotten; the budget still holds."""

UNKNOWN_PER_MINUTE_MAX = 20
"""Ids never seen that are asked for in a minute. Plaid rotates one key at a time; a flood of ids meets this wall."""

KEPT_MAX = 100
"""Good keys kept. Plaid has a handful at a time; each is renewed when a new one appears."""

FetchKey = Callable[[str], Awaitable[bytes | None]]
"""Give the JWK of a key id, None where Plaid knows none. Raises: Retry, where Plaid does not answer."""


@dataclass(slots=True)
class _Kept:
    key: VerificationKey
    observed_at: float
    renew_at: float


class KeyCache:
    """Keys by id. All times are those of `clock`, a monotonic one in seconds."""

    def __init__(self, fetch: FetchKey, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._kept: dict[str, _Kept] = {}
        self._refused: OrderedDict[str, tuple[Reason, float]] = OrderedDict()
        self._flights: dict[str, asyncio.Task[VerificationKey]] = {}
        self._asked: deque[float] = deque()

    async def get(self, key_id: str) -> VerificationKey:
        """The key with this id.

        Raises: Refused, where Plaid has no such key or has ended it; Retry, where nobody can say just now.
        """
        now = self._clock()
        kept = self._kept.get(key_id)
        if kept is not None and now < kept.renew_at:
            return kept.key
        self._raise_if_refused(key_id, now)
        flight = self._flights.get(key_id)
        if flight is None:
            if kept is None:
                self._spend(now)
            flight = self._start(key_id)
        # Shielded: the first of many waiters may give up, the others still want the answer.
        return await asyncio.shield(flight)

    async def close(self) -> None:
        """Give up what is being asked."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _raise_if_refused(self, key_id: str, now: float) -> None:
        reason, until = self._refused.get(key_id, (None, 0.0))
        if reason is not None and now < until:
            raise Refused(reason)

    def _spend(self, now: float) -> None:
        while self._asked and self._asked[0] <= now - 60.0:
            self._asked.popleft()
        if len(self._asked) >= UNKNOWN_PER_MINUTE_MAX:
            KEY_FETCHES.labels("over_budget").inc()
            raise Retry("too many unknown key ids in a minute", wait_s=self._asked[0] + 60.0 - now)
        self._asked.append(now)

    def _start(self, key_id: str) -> asyncio.Task[VerificationKey]:
        flight = asyncio.create_task(self._ask(key_id))
        self._flights[key_id] = flight
        flight.add_done_callback(lambda done: self._landed(key_id, done))
        return flight

    def _landed(self, key_id: str, flight: asyncio.Task[VerificationKey]) -> None:
        del self._flights[key_id]
        if not flight.cancelled():
            flight.exception()  # each waiter has it; where none waits any more, nobody else would read it

    async def _ask(self, key_id: str) -> VerificationKey:
        is_new = key_id not in self._kept
        try:
            jwk = await self._fetch(key_id)
        except Retry:
            KEY_FETCHES.labels("failed").inc()
            return self._still_good(key_id)
        try:
            key = _read(jwk, key_id)
        except Refused as refusal:
            self._refuse(key_id, refusal.reason)
            raise
        KEY_FETCHES.labels("known").inc()
        now = self._clock()
        self._kept[key_id] = _Kept(key, observed_at=now, renew_at=now + FRESH_S)
        if is_new:
            self._renew_others(key_id)
        return key

    def _still_good(self, key_id: str) -> VerificationKey:
        kept, now = self._kept.get(key_id), self._clock()
        if kept is None or now - kept.observed_at > KEPT_S_MAX:
            raise Retry("Plaid does not give its webhook keys")
        kept.renew_at = now + RETRY_S
        return kept.key

    def _refuse(self, key_id: str, reason: Reason) -> None:
        KEY_FETCHES.labels(reason.value).inc()
        self._kept.pop(key_id, None)
        self._refused[key_id] = (reason, self._clock() + REFUSED_S)
        self._refused.move_to_end(key_id)
        if len(self._refused) > REFUSED_MAX:
            self._refused.popitem(last=False)

    def _renew_others(self, new: str) -> None:
        """A new key means a rotation: ask for all others again, since Plaid may have ended them.

        Source: Plaid support, webhook verification sample; PLAID.md 1.6.
        """
        if len(self._kept) > KEPT_MAX:
            self._kept.pop(min(self._kept, key=lambda key_id: self._kept[key_id].observed_at))
        for key_id in self._kept:
            if key_id != new and key_id not in self._flights:
                self._start(key_id)


def _read(jwk: bytes | None, key_id: str) -> VerificationKey:
    if jwk is None:
        raise Refused(Reason.KEY_UNKNOWN)
    return read_key(jwk, key_id=key_id)
