"""What follows when a pass fails: how long to wait, whether to stop, when to set the Item aside. Core."""

from typing import Any

import msgspec

from runtime.scheduler.types import CURSOR_LOST, Claimed, Released
from streams.sync import backoff
from streams.sync.plaid_errors import Action

QUARANTINED, REFUSED, ERASED = "quarantined", "refused", "erased"


def refused(claimed: Claimed, action: Action, error: dict[str, Any], *, jitter: float) -> Released:
    """After an error of Plaid's that says nothing about the Item's state, or that stands in the way of its end."""
    attempts = claimed.attempts + 1
    if claimed.unlink_requested and action in (Action.NEVER, Action.USER, Action.GONE):
        # The end of an Item was promised, and until Plaid has removed it, it costs: it stays due.
        action = Action.HOURS
    match action:
        case Action.NOT_READY:
            return not_ready(claimed, jitter=jitter)
        case Action.LIMITED:
            return limited(claimed, error, wait_s=backoff.after_limit(jitter))
        case Action.HOURS:
            return _failed(attempts, error, backoff.after_outage(attempts, jitter))
        case Action.NEVER:
            return _failed(attempts, error, None, stopped=REFUSED)
    return _failed(attempts, error, backoff.after_failure(attempts, jitter))


def limited(claimed: Claimed, error: dict[str, Any], *, wait_s: float) -> Released:
    """After a rate limit, of Plaid's or our own: nothing is wrong with the Item, and no webhook ends the wait."""
    return Released(
        outcome="limited",
        done=False,
        due_in_s=wait_s,
        not_before_s=wait_s,
        attempts=claimed.attempts,
        not_ready=claimed.not_ready,
        error=error,
    )


def late(claimed: Claimed, error: dict[str, Any], *, jitter: float) -> Released:
    """After a failure of the way to Plaid, or of ours."""
    attempts = claimed.attempts + 1
    return _failed(attempts, error, backoff.after_failure(attempts, jitter))


def is_hopeless(claimed: Claimed) -> bool:
    """Whether an Item that cannot be processed was tried often enough to be set aside; one to be unlinked never is."""
    return not claimed.unlink_requested and claimed.attempts + 1 >= backoff.ATTEMPTS_MAX


def quarantined(claimed: Claimed, error: dict[str, Any]) -> Released:
    """After an Item was set aside: only its redrive makes it due again."""
    return _failed(claimed.attempts + 1, error, None, stopped=QUARANTINED)


def not_ready(claimed: Claimed, *, jitter: float, attempts: int = 0) -> Released:
    """After an answer that the history is not there: not a failure, and not an empty account either.

    `attempts`: failures in a row that this answer does not end.
    """
    answers = claimed.not_ready + 1
    return Released(
        outcome="not_ready",
        done=False,
        due_in_s=backoff.not_ready(answers, jitter),
        attempts=attempts,
        not_ready=answers,
    )


def restated(claimed: Claimed, result: Released, *, because: str, jitter: float) -> Released:
    """After a whole history in place of a lost cursor: a sync soon shows whether the new cursor is a good one.

    That one ends the attempts. Where each new cursor is refused, too, the whole history is read after 1, 2, 4, 8 and
    16 s, and then after hours, whatever webhooks say: it may be a million transactions each time.
    """
    attempts = attempts_at_history(claimed) + 1
    wait_s = backoff.after_failure(attempts, jitter)
    error = result.error or {"code": CURSOR_LOST, "detail": f"the whole history was read, because of {because}"}
    return msgspec.structs.replace(result, attempts=attempts, due_in_s=wait_s, not_before_s=wait_s, error=error)


def attempts_at_history(claimed: Claimed) -> int:
    """Failures in a row that count for a lost cursor; those of another kind, as an outage, make no hours of it."""
    if claimed.last_code in (None, CURSOR_LOST):
        return claimed.attempts
    return min(claimed.attempts, backoff.ATTEMPTS_MAX - 1)


def erased() -> Released:
    """The user's key was destroyed: nothing of them is asked for any more."""
    return Released(outcome="stopped", done=True, stopped=ERASED)


def _failed(attempts: int, error: dict[str, Any], due_in_s: float | None, *, stopped: str | None = None) -> Released:
    return Released(
        outcome="failed",
        # An Item that is stopped is dealt with: who waits for this pass is told so.
        done=stopped is not None,
        due_in_s=due_in_s,
        attempts=attempts,
        stopped=stopped,
        error=error,
    )
