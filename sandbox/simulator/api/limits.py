"""Enforce Plaid's rate limits, counted over a sliding minute.

Source: Plaid documentation, Rate limit exceeded errors, copy of 2026-03-07.
"""

import datetime as dt
from collections import deque
from typing import NamedTuple

from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.options import RateLimits

WINDOW = dt.timedelta(minutes=1)


class Limit(NamedTuple):
    """Requests a minute for one Item (None: not limited) and for the whole client, and the code beyond them."""

    item: int | None
    client: int
    code: str


_PRODUCTION = {
    "/transactions/sync": Limit(50, 2_500, "TRANSACTIONS_SYNC_LIMIT"),
    "/transactions/refresh": Limit(2, 100, "TRANSACTIONS_REFRESH_LIMIT"),
    "/accounts/get": Limit(15, 15_000, "ACCOUNTS_LIMIT"),
    "/accounts/balance/get": Limit(5, 1_200, "ACCOUNTS_BALANCE_GET_LIMIT"),
    "/item/get": Limit(15, 5_000, "ITEM_GET_LIMIT"),
    "/item/remove": Limit(30, 2_000, "RATE_LIMIT"),
}

_SANDBOX = {
    "/transactions/sync": Limit(50, 1_000, "TRANSACTIONS_SYNC_LIMIT"),
    "/transactions/refresh": Limit(2, 100, "TRANSACTIONS_REFRESH_LIMIT"),
    "/accounts/get": Limit(100, 5_000, "ACCOUNTS_LIMIT"),
    "/accounts/balance/get": Limit(25, 100, "ACCOUNTS_BALANCE_GET_LIMIT"),
    "/item/get": Limit(40, 5_000, "ITEM_GET_LIMIT"),
    "/item/remove": Limit(100, 500, "RATE_LIMIT"),
    "/sandbox/transactions/create": Limit(2, 50, "RATE_LIMIT"),
}

TABLES: dict[RateLimits, dict[str, Limit]] = {"off": {}, "sandbox": _SANDBOX, "production": _PRODUCTION}


class RateLimiter:
    """Count requests by endpoint and Item, and by endpoint for the client.

    A refused request is not counted, so waiting always helps. A window holds at most its limit's times.
    """

    def __init__(self, limits: dict[str, Limit]) -> None:
        self.limits = dict(limits)
        self._times: dict[tuple[str, str], deque[dt.datetime]] = {}

    def count(self, endpoint: str, item_id: str | None, now: dt.datetime) -> None:
        """Count a request. Raises: PlaidFailure of type RATE_LIMIT_EXCEEDED, where it is over a limit."""
        limit = self.limits.get(endpoint)
        if limit is None:
            return
        windows = [(self._window(endpoint, "", now), limit.client)]
        if item_id is not None and limit.item is not None:
            windows.append((self._window(endpoint, item_id, now), limit.item))
        if any(len(times) >= requests_max for times, requests_max in windows):
            raise PlaidFailure(limit.code)
        for times, _ in windows:
            times.append(now)

    def _window(self, endpoint: str, item_id: str, now: dt.datetime) -> deque[dt.datetime]:
        times = self._times.setdefault((endpoint, item_id), deque())
        while times and now - times[0] >= WINDOW:
            times.popleft()
        return times
