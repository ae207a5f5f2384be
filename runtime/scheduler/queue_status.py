"""The values of a queue's status, as operators and tenants are told it. Pure; runtime.scheduler.queue reads them."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from msgspec import Struct, field


class QueueState(StrEnum):
    """Where an Item stands. `ready` waits for a worker, `delayed` for a time, `idle` for the schedule or a webhook."""

    READY = "ready"
    RUNNING = "running"
    DELAYED = "delayed"
    QUARANTINED = "quarantined"
    STOPPED = "stopped"
    IDLE = "idle"


class ItemCounts(Struct):
    """Items by state."""

    ready: int = 0
    running: int = 0
    delayed: int = 0
    quarantined: int = 0
    stopped: int = 0
    idle: int = 0


class LaneCounts(Struct):
    """What is due in a lane. Units: seconds that its oldest Item has been ready."""

    lane: str
    ready: int = 0
    running: int = 0
    delayed: int = 0
    oldest_wait_s: float | None = None


class BankCounts(Struct):
    """The Items of a bank that are not idle."""

    institution_id: str | None
    institution_name: str | None = None
    ready: int = 0
    running: int = 0
    delayed: int = 0
    quarantined: int = 0
    stopped: int = 0
    oldest_wait_s: float | None = None


class QueuedItem(Struct):
    """One Item that is not idle.

    `why`: what holds it back, or why it stopped. `since`: when it became so; `until`: when a delay ends.
    """

    item_id: str
    tenant: str
    state: QueueState
    lane: str
    why: str | None
    code: str | None
    detail: str | None
    attempts: int
    cause: str
    institution_id: str | None
    since: datetime | None
    until: datetime | None


class FailedRun(Struct):
    """A pass that failed. `attempts`: the Item's failures in a row, today; 0 where it has recovered since."""

    item_id: str
    tenant: str
    at: datetime
    cause: str
    code: str | None
    detail: str | None
    attempts: int


class OpenBreaker(Struct):
    """A bank that is asked nothing. `open_until` in the past: one Item may try."""

    institution_id: str
    open_until: datetime
    trips: int
    code: str | None


class ClientBucket(Struct):
    """The client's quota of an endpoint. Units: requests; `next_in_s` until there is one again where none is left."""

    endpoint: str
    per_minute: int
    left: int
    burst: int
    next_in_s: float


class OpenIncident(Struct):
    """An incident that is open. `remedy`: what an operator does about its kind."""

    incident: int
    kind: str
    subject: str
    detail: str
    count: int
    opened_at: datetime
    last_at: datetime
    remedy: str | None


class WithheldRemovals(Struct):
    """Removals that wait for a person: a restated history would remove too many of an Item's transactions."""

    item_id: str
    tenant: str
    transactions: int
    changeset: str | None


class ScheduleHealth(Struct):
    """Whether every Item is asked about in time. `reasons` say why not; `healthy` is that there are none.

    Units: seconds. `overdue`: Items that nothing holds back and that were not asked about for longer than interval
    and tolerance; `oldest_unseen_s`: of those that nothing holds back; `backlog`: ready in the schedule's lane.
    """

    healthy: bool
    reasons: list[str]
    interval_s: float
    tolerance_s: float
    last_tick_at: datetime | None
    last_tick_age_s: float | None
    last_tick_marked: int | None
    overdue: int
    oldest_unseen_s: float | None
    backlog: int
    quota_short: bool


class QueueStatus(Struct):
    """The queue as one tenant, or the operator, sees it."""

    at: datetime
    items: int
    states: ItemCounts
    delayed_by: dict[str, int]
    stopped_by: dict[str, int]
    lanes: list[LaneCounts]
    banks: list[BankCounts]
    listed: list[QueuedItem]
    failures: list[FailedRun]
    breakers: list[OpenBreaker]
    incidents: list[OpenIncident]
    removals_withheld: list[WithheldRemovals]
    schedule: ScheduleHealth
    # Of the whole installation: told to its operator only.
    buckets: list[ClientBucket] = field(default_factory=list)
    webhook_loss: dict[str, Any] | None = None
