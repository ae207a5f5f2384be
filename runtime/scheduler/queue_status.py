"""Values of a queue's status; runtime.scheduler.queue reads them."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from msgspec import Struct, field


class QueueState(StrEnum):
    """State of an Item. `ready` waits for a worker, `delayed` for a time, `idle` for the schedule or a webhook."""

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
    """Due Items of a lane. Units: seconds for which its oldest Item has been ready."""

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
    """A sync run that failed. `attempts`: the Item's failures in a row at present; 0 where it has recovered."""

    item_id: str
    tenant: str
    at: datetime
    cause: str
    code: str | None
    detail: str | None
    attempts: int


class OpenBreaker(Struct):
    """A bank that is not asked. `open_until` in the past: one Item may try."""

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
    """An open incident with the remedy of its kind."""

    incident: int
    kind: str
    subject: str
    detail: str
    count: int
    opened_at: datetime
    last_at: datetime
    remedy: str | None


class WithheldRemovals(Struct):
    """Removals that wait for an approval: a full resync would remove too many of an Item's transactions."""

    item_id: str
    tenant: str
    transactions: int
    changeset: str | None


class ScheduleHealth(Struct):
    """Health of the schedule: `healthy` where no `reasons` are against it.

    Units: seconds. `overdue`: number of Items that nothing holds back and that were not synced for longer than interval
    and tolerance; `oldest_unseen_s`: the longest of those times; `backlog`: ready Items of the schedule's lane.
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
    """Status of the queue, of one tenant or of the installation.

    `buckets` and `webhook_loss` are of the whole installation, for its operator only.
    """

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
    buckets: list[ClientBucket] = field(default_factory=list)
    webhook_loss: dict[str, Any] | None = None
