"""Compute the wait before the next attempt. Core: `jitter` is a random number in [0, 1).

Each wait is stretched by up to half, so that Items that failed together do not come back together.
"""

RETRY_BASE_S = 1.0
ATTEMPTS_MAX = 5
"""Attempts in a row whose wait doubles from RETRY_BASE_S: 1 + 2 + 4 + 8 + 16 s; after them an hour and more."""
OUTAGE_BASE_S = 3600.0
OUTAGE_CAP_S = 12 * 3600.0
"""An outage of a bank lasts "a few hours or until the next day" (PLAID.md 1.9); a webhook ends the wait earlier."""
RATE_LIMIT_S = 60.0
"""Plaid counts its limits by the minute (PLAID.md 1.8), so a minute later there is room."""
NOT_READY_BASE_S = 1.0
NOT_READY_CAP_S = 15 * 60.0
"""A history takes seconds to minutes and its webhook ends the wait; the cap bounds the cost of a lost webhook."""
NOT_READY_ANSWERS_MAX = 20
"""After so many answers, about three hours, a full resync accepts a history that Plaid does not call complete: with the
status TRANSACTIONS_UPDATE_STATUS_UNKNOWN Plaid never does. Such a history concludes no removals."""
REFRESHED_S = 15.0
"""A bank that is refreshed on demand has mostly answered after 10 s (PLAID.md 1.2, point 14). One sync after this time
makes up for a lost webhook; later data has its own webhook and the schedule."""
RESTARTS_MAX = 5
"""Restarts of one update within a sync run; where each of them meets a mutation, the waits between runs follow."""
RESTART_BASE_S = 0.25
RESTART_CAP_S = 60.0


def after_failure(attempts: int, jitter: float) -> float:
    """Return the wait after this many failures in a row, the last one included."""
    if attempts > ATTEMPTS_MAX:
        return after_outage(attempts - ATTEMPTS_MAX, jitter)
    return _exponential(RETRY_BASE_S, OUTAGE_BASE_S, attempts, jitter)


def after_outage(attempts: int, jitter: float) -> float:
    """Return the wait after this many answers in a row that a bank cannot be reached."""
    return _exponential(OUTAGE_BASE_S, OUTAGE_CAP_S, attempts, jitter)


def after_rate_limit(jitter: float) -> float:
    """Return the wait after a rate limit of Plaid's."""
    return RATE_LIMIT_S * (1 + jitter / 2)


def after_not_ready(answers: int, jitter: float) -> float:
    """Return the wait after this many answers in a row that the history is not ready."""
    return _exponential(NOT_READY_BASE_S, NOT_READY_CAP_S, answers, jitter)


def before_restart(restarts: int, jitter: float) -> float:
    """Return the wait before the n-th restart of an update."""
    return _exponential(RESTART_BASE_S, RESTART_CAP_S, restarts, jitter)


def _exponential(base_s: float, cap_s: float, attempt: int, jitter: float) -> float:
    # 2 ** 30 s are 34 years: every cap is below, and no exponent overflows.
    return float(min(cap_s, base_s * 2 ** min(max(attempt - 1, 0), 30)) * (1 + jitter / 2))
