"""Define the options of a simulated Plaid."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Literal

from sandbox.simulator.bank.transactions import CategoryVersion

RateLimits = Literal["off", "sandbox", "production"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRates:
    """Shares of webhooks that the seed loses, repeats or delays. Units: shares in [0, 1]."""

    lost: float = 0.0
    repeated: float = 0.0
    delayed: float = 0.0
    delay_max_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRates:
    """Shares of requests that fail by the seed, with a code drawn from `failures`.

    `mutation`: of `/transactions/sync` requests within a pagination. `failure`: of all `/transactions/sync` requests.
    `other_failure`: of requests to an Item's other endpoints.
    """

    mutation: float = 0.0
    failure: float = 0.0
    other_failure: float = 0.0
    failures: tuple[str, ...] = ("INTERNAL_SERVER_ERROR", "RATE_LIMIT", "HTML", "RESET")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a simulated Plaid.

    `time_scale` multiplies all of Plaid's own waits and windows (retries, refreshes, readiness, the day of the
    90 percent rule), so that a test can shrink a day to a second.
    """

    host: str = "127.0.0.1"
    port: int = 0
    seed: int = 1
    start_at: dt.datetime | None = None
    client_id: str = "simulated-client"
    secret: str = "simulated-secret"  # noqa: S105 - it opens an imaginary bank
    webhook_url: str | None = None
    validate_requests: bool = True
    time_scale: float = 1.0
    latency_s: float = 0.0

    history_transactions: int = 120
    history_days: int = 90
    initial_update_delay_s: float = 3.0
    historical_update_delay_s: float = 20.0
    refresh_delay_s: float = 2.0

    novelty: float = 0.02
    unfolded_share: float = 0.3
    page_split_share: float = 0.2
    category_version: CategoryVersion = "v2"

    rate_limits: RateLimits = "sandbox"
    faults: FaultRates = field(default_factory=FaultRates)
    webhooks: WebhookRates = field(default_factory=WebhookRates)
    legacy_webhooks: bool = False
    resign_retries: bool = True
    rotate_key_every: int | None = None
    deliveries_in_flight_max: int = 64
    delivery_timeout_s: float = 10.0
    """Source: Plaid documentation, Webhooks: no reply within ten seconds is a failure."""
