"""Sync outcome: judge a requested sync by the sync runs after it. Core."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from gateway.handlers.ownership import OwnedItem
from gateway.handlers.syncs.sync_requests import SyncRequest
from runtime.scheduler.runs import FinishedRun
from runtime.scheduler.stop_reasons import QUARANTINED

ACCEPTED, APPLIED = "accepted", "applied"
FAILED, STOPPED, NOT_READY, APPENDED = "failed", "stopped", "not_ready", "appended"


class SyncOutcome(NamedTuple):
    """Result of a requested sync so far.

    `is_final`: no later run changes it. `complete`: readers see all requested data. `refreshed_at`: when Plaid got
    the refresh call of the request.
    """

    status: str
    is_final: bool = False
    complete: bool = False
    runs: Sequence[FinishedRun] = ()
    error: dict[str, Any] | None = None
    refreshed_at: datetime | None = None


def judge(request: SyncRequest, item: OwnedItem, runs: Sequence[FinishedRun], position: int) -> SyncOutcome:
    """Judge a request by the runs after it. A failed run is the result only while no later run succeeded.

    `position`: next offset of the Item's partition that readers do not see yet.
    """
    outcome = _outcome_of(request, item, runs, position)
    if item.stopped == QUARANTINED and not outcome.is_final:
        return SyncOutcome(FAILED, is_final=True, error={"code": "SET_ASIDE"})
    return outcome


def _outcome_of(request: SyncRequest, item: OwnedItem, runs: Sequence[FinishedRun], position: int) -> SyncOutcome:
    succeeded = [run for run in runs if run.outcome != FAILED]
    if not succeeded:
        return SyncOutcome(FAILED, is_final=True, error=runs[-1].error or {}) if runs else SyncOutcome(ACCEPTED)
    last = succeeded[0]
    if last.outcome == STOPPED:
        return SyncOutcome(STOPPED, is_final=True, runs=[last], error={"code": item.stopped or STOPPED})
    refreshed = _first_run_after_refresh(request, item, succeeded) if request.refresh else None
    last = refreshed or last
    counted = [run for run in succeeded if run.run <= last.run]
    # The head may be of a run before the first one, and not visible yet.
    needed = max(*(run.changeset_offset or -1 for run in counted), item.head_offset or -1, -1)
    if position <= needed:
        return SyncOutcome(ACCEPTED)
    if last.outcome == NOT_READY:
        return SyncOutcome(NOT_READY, is_final=not request.refresh, runs=counted)
    complete = not request.refresh or refreshed is not None
    # A successful run with an error was not allowed to have the bank polled: no later run will be.
    refusal = None if complete or is_bank_asked(request, item) else last.error
    return SyncOutcome(
        APPLIED,
        is_final=complete or refusal is not None,
        complete=complete,
        runs=counted,
        error=refusal,
        refreshed_at=item.refreshed_at if complete and request.refresh else None,
    )


def _first_run_after_refresh(request: SyncRequest, item: OwnedItem, runs: Sequence[FinishedRun]) -> FinishedRun | None:
    """Return the first run that started after Plaid had read the bank for this request.

    Plaid's time of its last success proves the read, or the webhook that it sends then.
    """
    if not is_bank_asked(request, item):
        return None
    assert item.refreshed_at is not None
    times = [
        time for time in (item.bank_updated_at, item.last_webhook_at) if time is not None and time > item.refreshed_at
    ]
    return next((run for run in runs if times and run.started_at >= min(times)), None)


def is_bank_asked(request: SyncRequest, item: OwnedItem) -> bool:
    """Return whether a sync run sent the refresh call of this request to Plaid."""
    return request.refresh and item.refreshed_at is not None and item.refreshed_at >= request.asked_at


def bank_updated_at(item: OwnedItem, outcome: SyncOutcome) -> datetime | None:
    """Return the last known time at which Plaid read the bank.

    A refresh is often known from its webhook alone, which carries no time: the read was not before the refresh call.
    The next `/item/get` brings Plaid's own time.
    """
    known = [item.bank_updated_at, outcome.refreshed_at]
    return max((time for time in known if time is not None), default=None)
