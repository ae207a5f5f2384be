"""Rate limit: one bucket of requests a tenant, refilled at a fixed rate."""

import time
from collections.abc import Callable
from http import HTTPStatus

from gateway.http.problems import Problem

REQUESTS_PER_S = 200.0
"""A gateway process answers about 2,000 reads a second on one core; no tenant gets more than a tenth for long."""
BURST_MAX = 1000
"""An application that starts may link or read many users at once."""


class RequestBuckets:
    """One bucket a tenant. `clock` is monotonic, in seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, tenant: str) -> None:
        """Take one request out of the tenant's bucket.

        Raises: Problem 429, with the seconds until the next request.
        """
        now = self._clock()
        left, refilled_at = self._buckets.get(tenant, (float(BURST_MAX), now))
        left = min(float(BURST_MAX), left + (now - refilled_at) * REQUESTS_PER_S)
        if left < 1.0:
            # A refused request costs nothing, so a client in a hot loop gets its share all the same.
            self._buckets[tenant] = (left, now)
            detail = f"more than {REQUESTS_PER_S:g} requests a second"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "rate_limit", detail, headers={"Retry-After": "1"})
        self._buckets[tenant] = (left - 1.0, now)
