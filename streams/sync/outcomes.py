"""Decide what follows a sync run that failed: the wait, a stop, or a quarantine. Core."""

from typing import Any

import msgspec

from runtime.scheduler.types import CURSOR_LOST, Claimed, Released
from streams.sync import backoff
from streams.sync.plaid_errors import STOPPING, ErrorClass

QUARANTINED, REFUSED, ERASED = "quarantined", "refused", "erased"
"""Values of `Released.stopped`."""
DETAIL_CHARACTERS_MAX = 300


def error_fields(code: str, detail: str, *, request_id: str | None = None) -> dict[str, Any]:
    """Return the value of `last_error` and `sync_runs.error`: codes and our own text, never Plaid's or a token."""
    fields = {"code": code, "detail": detail[:DETAIL_CHARACTERS_MAX]}
    return fields if request_id is None else fields | {"request_id": request_id}


def after_plaid_error(claimed: Claimed, error_class: ErrorClass, error: dict[str, Any], *, jitter: float) -> Released:
    """Return the outcome of an error that is no state of the Item, or that prevents its removal."""
    attempts = claimed.attempts + 1
    if claimed.unlink_requested and error_class in STOPPING:
        # Until Plaid has removed the Item it costs money: it stays due.
        error_class = ErrorClass.OUTAGE
    match error_class:
        case ErrorClass.NOT_READY:
            return after_not_ready(claimed, jitter=jitter)
        case ErrorClass.RATE_LIMIT:
            return after_rate_limit(claimed, error, wait_s=backoff.after_rate_limit(jitter))
        case ErrorClass.OUTAGE:
            return _failed(attempts, error, backoff.after_outage(attempts, jitter))
        case ErrorClass.REJECTED:
            return _failed(attempts, error, None, stopped=REFUSED)
    return _failed(attempts, error, backoff.after_failure(attempts, jitter))


def after_rate_limit(claimed: Claimed, error: dict[str, Any], *, wait_s: float) -> Released:
    """Return the outcome of a rate limit, Plaid's or our own: it is no failure, and no webhook ends the wait."""
    return Released(
        outcome="limited",
        done=False,
        due_in_s=wait_s,
        not_before_s=wait_s,
        attempts=claimed.attempts,
        not_ready=claimed.not_ready,
        error=error,
    )


def after_failure(claimed: Claimed, error: dict[str, Any], *, jitter: float) -> Released:
    """Return the outcome of a failure between us and Plaid, or of our own."""
    attempts = claimed.attempts + 1
    return _failed(attempts, error, backoff.after_failure(attempts, jitter))


def is_exhausted(claimed: Claimed) -> bool:
    """Return whether an Item has failed often enough to be quarantined; one to be unlinked never has."""
    return not claimed.unlink_requested and claimed.attempts + 1 >= backoff.ATTEMPTS_MAX


def quarantined(claimed: Claimed, error: dict[str, Any]) -> Released:
    """Return the outcome of a quarantine: only a redrive makes the Item due again."""
    return _failed(claimed.attempts + 1, error, None, stopped=QUARANTINED)


def after_not_ready(claimed: Claimed, *, jitter: float, attempts: int = 0) -> Released:
    """Return the outcome of a history that is not ready: no failure, and no empty account either.

    `attempts`: failures in a row that this answer does not end.
    """
    answers = claimed.not_ready + 1
    return Released(
        outcome="not_ready",
        done=False,
        due_in_s=backoff.after_not_ready(answers, jitter),
        attempts=attempts,
        not_ready=answers,
    )


def after_full_resync(claimed: Claimed, result: Released, *, because: str, jitter: float) -> Released:
    """Return the outcome of a full resync: a sync follows shortly, to check the new cursor, and it ends the attempts.

    Where Plaid refuses each new cursor too, the full resync is repeated after 1, 2, 4, 8 and 16 s and then after
    hours, whatever webhooks come: each may read a million transactions.
    """
    attempts = full_resync_attempts(claimed) + 1
    wait_s = backoff.after_failure(attempts, jitter)
    error = result.error or {"code": CURSOR_LOST, "detail": f"the whole history was read, because of {because}"}
    return msgspec.structs.replace(result, attempts=attempts, due_in_s=wait_s, not_before_s=wait_s, error=error)


def full_resync_attempts(claimed: Claimed) -> int:
    """Return the failures in a row that count for a lost cursor; failures of another kind must not add hours to it."""
    if claimed.last_code in (None, CURSOR_LOST):
        return claimed.attempts
    return min(claimed.attempts, backoff.ATTEMPTS_MAX - 1)


def _failed(attempts: int, error: dict[str, Any], due_in_s: float | None, *, stopped: str | None = None) -> Released:
    # A stopped Item is done, so that whoever waits for this sync run gets an answer.
    return Released(
        outcome="failed", done=stopped is not None, due_in_s=due_in_s, attempts=attempts, stopped=stopped, error=error
    )
