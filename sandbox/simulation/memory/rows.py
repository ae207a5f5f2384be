"""Define the rows of the scheduler's tables in memory."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from runtime.scheduler.types import Lane
from schemas.log.records import Cause


@dataclass(slots=True)
class Row:
    """A row of `sync_state`."""

    item_id: str
    tenant: str
    user: int
    partition: int
    institution_id: str | None
    created_at: datetime
    due_at: datetime | None
    cause: Cause
    lane: int = Lane.BACKFILL
    marks: int = 0
    marks_at_claim: int = 0
    generation: int = 1
    done_generation: int = 0
    not_before: datetime | None = None
    lease_token: bytes | None = None
    lease_until: datetime | None = None
    lease_holder: str | None = None
    wait_offset: int | None = None
    unlink_requested: bool = False
    accounts_wanted: bool = True
    accounts_at: datetime | None = None
    refresh_wanted: bool = False
    history_incomplete: bool = False
    refreshed_at: datetime | None = None
    bank_observed_at: datetime | None = None
    bank_updated_at: datetime | None = None
    last_webhook_at: datetime | None = None
    last_synced_at: datetime | None = None
    last_attempt_at: datetime | None = None
    last_error: dict[str, Any] | None = None
    stopped: str | None = None
    attempts: int = 0
    not_ready: int = 0

    @property
    def ready_at(self) -> datetime | None:
        """The time from which the Item can be claimed; None where it is not due."""
        if self.due_at is None or self.not_before is None:
            return self.due_at
        return max(self.due_at, self.not_before)


@dataclass(slots=True)
class Credential:
    """A row of `credentials`, its token in clear."""

    tenant: str
    user: int
    institution_id: str | None
    institution_name: str | None
    token: str | None
    unlinked: bool = False


@dataclass(slots=True)
class ItemQuarantine:
    """A row of `quarantines`."""

    partition: int
    reason: str
    reader: str
    redrive_offset: int | None = None


@dataclass(slots=True)
class FinishedRun:
    """A row of `sync_runs`, as far as `count_gone` reads it."""

    at: datetime
    outcome: str
    error: dict[str, Any] | None
