"""Plaid's quotas, counted by us: no answer of Plaid's says how much is left (PLAID.md 1.8).

A bucket is one moment in Postgres, shared by all workers: when it would be full again (GCRA). A request is let
through while that moment lies at most the bucket's burst ahead, and moves it on by one interval. Burst and refill
together never exceed Plaid's limit in any minute: burst + 60 s / interval <= limit.
"""

from collections.abc import Mapping
from typing import NamedTuple

from schemas.errors import Halt

MINUTE_S = 60.0
SYNC, REFRESH, RECURRING = "transactions/sync", "transactions/refresh", "transactions/recurring/get"
ACCOUNTS, BALANCE, ITEM, REMOVE = "accounts/get", "accounts/balance/get", "item/get", "item/remove"
CLIENT = ""
"""`item_id` of the client's own bucket."""


class Limit(NamedTuple):
    """Requests a minute that Plaid allows for one Item and for the client."""

    item: int
    client: int


class Pace(NamedTuple):
    """How a bucket is used. Units: seconds; a request costs `interval_s`, the bucket lends `burst_s` ahead."""

    interval_s: float
    burst_s: float


PLANS: Mapping[str, Mapping[str, Limit]] = {
    "production": {
        SYNC: Limit(50, 2_500), REFRESH: Limit(2, 100), RECURRING: Limit(20, 1_000), ACCOUNTS: Limit(15, 15_000),
        BALANCE: Limit(5, 1_200), ITEM: Limit(15, 5_000), REMOVE: Limit(30, 2_000),
    },
    "sandbox": {
        SYNC: Limit(50, 1_000), REFRESH: Limit(2, 100), RECURRING: Limit(20, 1_000), ACCOUNTS: Limit(100, 5_000),
        BALANCE: Limit(25, 100), ITEM: Limit(40, 5_000), REMOVE: Limit(100, 500),
    },
    "off": {},
}  # fmt: skip
"""Source: PLAID.md 1.8, of 2026-03-07."""


def limits(text: str, *, environment: str) -> dict[str, Limit]:
    """Read TARTAN_PLAID_LIMITS: a plan's name and changes to it, "production,transactions/sync=100/5000".

    An empty text is the plan of the environment.
    Raises: Halt, naming the part that is wrong.
    """
    found: dict[str, Limit] = {}
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or "=" in parts[0]:
        parts.insert(0, environment)
    if parts[0] not in PLANS:
        raise Halt(f"TARTAN_PLAID_LIMITS: {parts[0]!r} is no plan; plans are {', '.join(PLANS)}")
    found.update(PLANS[parts[0]])
    for part in parts[1:]:
        endpoint, _, numbers = part.partition("=")
        item, slash, client = numbers.partition("/")
        if not (slash and item.isdecimal() and client.isdecimal() and int(item) and int(client)):
            raise Halt(f"TARTAN_PLAID_LIMITS: {part!r} is not endpoint=item/client, both a minute and above 0")
        found[endpoint.strip("/ ")] = Limit(int(item), int(client))
    return found


def item_pace(limit: Limit) -> Pace:
    """How an Item's bucket is used: half at once, since a history is many pages in a row and then none."""
    return _pace(limit.item, burst=limit.item // 2)


def client_pace(limit: Limit) -> Pace:
    """How the client's bucket is used: a tenth at once, so that a burst leaves room for webhooks of the same minute."""
    return _pace(limit.client, burst=limit.client // 10)


def _pace(limit: int, *, burst: int) -> Pace:
    burst = min(max(burst, 1), limit)
    # A limit of 1 is a burst of 1 and one a minute: two within a minute cannot be told apart from one a minute.
    refill = max(limit - burst, 1 if limit > 1 else 0) or 1
    interval_s = MINUTE_S / refill
    return Pace(interval_s, interval_s * (burst - 1))
