"""Plaid's rate limits by plan and endpoint, and the setting that changes them."""

from collections.abc import Mapping
from typing import NamedTuple

from schemas.errors import Halt

SYNC, REFRESH, RECURRING = "transactions/sync", "transactions/refresh", "transactions/recurring/get"
ACCOUNTS, BALANCE, ITEM, REMOVE = "accounts/get", "accounts/balance/get", "item/get", "item/remove"


class Limit(NamedTuple):
    """Requests a minute that Plaid allows for one Item and for the client."""

    item: int
    client: int


PLANS: Mapping[str, Mapping[str, Limit]] = {
    "production": {
        SYNC: Limit(50, 2_500),
        REFRESH: Limit(2, 100),
        RECURRING: Limit(20, 1_000),
        ACCOUNTS: Limit(15, 15_000),
        BALANCE: Limit(5, 1_200),
        ITEM: Limit(15, 5_000),
        REMOVE: Limit(30, 2_000),
    },
    "sandbox": {
        SYNC: Limit(50, 1_000),
        REFRESH: Limit(2, 100),
        RECURRING: Limit(20, 1_000),
        ACCOUNTS: Limit(100, 5_000),
        BALANCE: Limit(25, 100),
        ITEM: Limit(40, 5_000),
        REMOVE: Limit(100, 500),
    },
    "off": {},
}
"""Plan to endpoint to limit. Source: PLAID.md 1.8, of 2026-03-07."""


def parse(text: str, *, environment: str) -> dict[str, Limit]:
    """Parse TARTAN_PLAID_LIMITS: a plan's name and changes to it, "production,transactions/sync=100/5000".

    An empty text is the plan of the environment.
    Raises: Halt, naming the part that is wrong.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or "=" in parts[0]:
        parts.insert(0, environment)
    if parts[0] not in PLANS:
        raise Halt(f"TARTAN_PLAID_LIMITS: {parts[0]!r} is no plan; plans are {', '.join(PLANS)}")
    limits = dict(PLANS[parts[0]])
    for part in parts[1:]:
        endpoint, _, numbers = part.partition("=")
        item, slash, client = numbers.partition("/")
        if not (slash and item.isdecimal() and client.isdecimal() and int(item) and int(client)):
            raise Halt(f"TARTAN_PLAID_LIMITS: {part!r} is not endpoint=item/client, both a minute and above 0")
        limits[endpoint.strip("/ ")] = Limit(int(item), int(client))
    return limits
