"""Cache Plaid's public keys: one request a key, none for ids known not to exist, few for unknown ids.

An attacker chooses the key id of a forged token, so every unknown id would otherwise be a request to Plaid.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ingest.metrics import KEY_FETCHES
from ingest.refusals import Reason, WebhookRefused
from ingest.verification import VerificationKey, read_key
from schemas.errors import Retry

FRESH_S = 3600.0
"""A key is requested again after an hour, so a key that Plaid ended is noticed without a new one appearing."""
KEPT_S_MAX = 24 * 3600.0
"""While Plaid does not answer, a key stays valid for a day: longer than its outages, and than its webhook retries."""
RETRY_S = 60.0
"""After a failed renewal the old key serves this long before the next request."""
REFUSED_S = 300.0
"""An unknown, ended or unusable key is refused for this time without a request."""
REFUSED_MAX = 10_000
"""Refused ids in memory, about 200 bytes each. Beyond it the oldest is dropped; the budget still limits requests."""
UNKNOWN_PER_MINUTE_MAX = 20
"""Requests for unknown ids in a minute. Plaid rotates one key at a time; a flood of ids ends here."""
KEPT_MAX = 100
"""Valid keys in memory. Plaid has a handful at a time; each is renewed when a new one appears."""

FetchKey = Callable[[str], Awaitable[bytes | None]]
"""Return the JWK of a key id, None where Plaid has none. Raises: Retry, where Plaid does not answer."""


@dataclass(slots=True)
class _CachedKey:
    key: VerificationKey
    observed_at: float
    renew_at: float


class KeyCache:
    """Cache of keys by id. All times are those of `clock`, a monotonic one in seconds."""

    def __init__(self, fetch: FetchKey, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._cached: dict[str, _CachedKey] = {}
        self._refused: OrderedDict[str, tuple[Reason, float]] = OrderedDict()
        self._requests: dict[str, asyncio.Task[VerificationKey]] = {}
        self._unknown_at: deque[float] = deque()

    async def get(self, key_id: str) -> VerificationKey:
        """Return the key with this id.

        Raises: WebhookRefused, where Plaid has no such key or has ended it; Retry, where that is not known now.
        """
        now = self._clock()
        cached = self._cached.get(key_id)
        if cached is not None and now < cached.renew_at:
            return cached.key
        reason, refused_until = self._refused.get(key_id, (None, 0.0))
        if reason is not None and now < refused_until:
            raise WebhookRefused(reason)
        request = self._requests.get(key_id)
        if request is None:
            if cached is None:
                self._spend_budget(now)
            request = self._start(key_id)
        # Shielded: the first of many waiters may be cancelled while the others still need the answer.
        return await asyncio.shield(request)

    async def close(self) -> None:
        """Cancel the requests under way."""
        requests = list(self._requests.values())
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)

    def _spend_budget(self, now: float) -> None:
        while self._unknown_at and self._unknown_at[0] <= now - 60.0:
            self._unknown_at.popleft()
        if len(self._unknown_at) >= UNKNOWN_PER_MINUTE_MAX:
            KEY_FETCHES.labels("over_budget").inc()
            raise Retry("too many unknown key ids in a minute", wait_s=self._unknown_at[0] + 60.0 - now)
        self._unknown_at.append(now)

    def _start(self, key_id: str) -> asyncio.Task[VerificationKey]:
        def end(request: asyncio.Task[VerificationKey]) -> None:
            del self._requests[key_id]
            if not request.cancelled():
                request.exception()  # read here too, for the case that no waiter is left to read it

        request = self._requests[key_id] = asyncio.create_task(self._request(key_id))
        request.add_done_callback(end)
        return request

    async def _request(self, key_id: str) -> VerificationKey:
        before = self._cached.get(key_id)
        try:
            jwk = await self._fetch(key_id)
        except Retry:
            KEY_FETCHES.labels("failed").inc()
            return self._renew_later(key_id)
        if jwk is None:
            self._refuse(key_id, Reason.KEY_UNKNOWN)
            raise WebhookRefused(Reason.KEY_UNKNOWN)
        try:
            key = read_key(jwk, key_id=key_id)
        except WebhookRefused as refusal:
            self._refuse(key_id, refusal.reason)
            raise
        KEY_FETCHES.labels("known").inc()
        now = self._clock()
        self._cached[key_id] = _CachedKey(key, observed_at=now, renew_at=now + FRESH_S)
        if before is None:
            self._renew_others(key_id)
        return key

    def _renew_later(self, key_id: str) -> VerificationKey:
        cached, now = self._cached.get(key_id), self._clock()
        if cached is None or now - cached.observed_at > KEPT_S_MAX:
            raise Retry("Plaid does not give its webhook keys")
        cached.renew_at = now + RETRY_S
        return cached.key

    def _refuse(self, key_id: str, reason: Reason) -> None:
        KEY_FETCHES.labels(reason.value).inc()
        self._cached.pop(key_id, None)
        self._refused[key_id] = (reason, self._clock() + REFUSED_S)
        self._refused.move_to_end(key_id)
        if len(self._refused) > REFUSED_MAX:
            self._refused.popitem(last=False)

    def _renew_others(self, new: str) -> None:
        """Request all other keys again, because a new key means a rotation, in which Plaid may have ended them.

        Source: Plaid support, webhook verification sample; PLAID.md 1.6.
        """
        if len(self._cached) > KEPT_MAX:
            self._cached.pop(min(self._cached, key=lambda key_id: self._cached[key_id].observed_at))
        for key_id in self._cached:
            if key_id != new and key_id not in self._requests:
                self._start(key_id)
