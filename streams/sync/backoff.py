"""How long to wait before the next attempt. Core: `jitter` is a random number in [0, 1).

Each wait is stretched by up to half, so that Items that failed together do not come back together.
"""

SOON_S = 1.0
ATTEMPTS_MAX = 5
"""Attempts in a row with a wait that doubles from SOON_S: 1 + 2 + 4 + 8 + 16 s; then an hour and more."""
HOUR_S = 3600.0
HOURS_MAX = 12
"""An outage of a bank lasts "a few hours or until the next day" (PLAID.md 1.9); a webhook ends the wait earlier."""
LIMIT_S = 60.0
"""Plaid's limits are counted by the minute (PLAID.md 1.8): a minute later there is room, however often it was full."""
NOT_READY_S = 1.0
NOT_READY_S_MAX = 15 * 60.0
"""A history takes seconds to minutes, and its webhook ends the wait; this bounds what a lost one costs."""
HISTORY_ANSWERS_MAX = 20
"""So many answers, about three hours, a history that is read again may be incomplete. Plaid has no word for "complete"
where it cannot tell (TRANSACTIONS_UPDATE_STATUS_UNKNOWN): then what there is counts, and nothing is concluded from what
is not."""
REFRESHED_S = 15.0
"""A bank that is asked on demand has mostly answered after 10 s (PLAID.md 1.2, point 14). One look after this time
heals a webhook that is lost; what comes later still has its webhook and the schedule."""
RESTARTS_MAX = 5
"""Restarts of one sync loop within a pass; a mutation at every attempt ends in the waits above."""
RESTART_S = 0.25


def after_failure(attempts: int, jitter: float) -> float:
    """After so many failures in a row, the last one included."""
    return (
        after_outage(attempts - ATTEMPTS_MAX, jitter)
        if attempts > ATTEMPTS_MAX
        else _doubled(SOON_S, attempts - 1, jitter, most=HOUR_S)
    )


def after_outage(attempts: int, jitter: float) -> float:
    """After so many answers in a row that a bank cannot be reached."""
    return _doubled(HOUR_S, attempts - 1, jitter, most=HOURS_MAX * HOUR_S)


def after_limit(jitter: float) -> float:
    """After a rate limit."""
    return LIMIT_S * (1 + jitter / 2)


def not_ready(answers: int, jitter: float) -> float:
    """After so many answers in a row that the history is not there."""
    return _doubled(NOT_READY_S, answers - 1, jitter, most=NOT_READY_S_MAX)


def before_restart(restarts: int, jitter: float) -> float:
    """Before the n-th restart of a sync loop."""
    return _doubled(RESTART_S, restarts - 1, jitter, most=LIMIT_S)


def _doubled(first_s: float, times: int, jitter: float, *, most: float) -> float:
    # 2 ** 30 s are 34 years: every bound is below, and no exponent overflows.
    return float(min(most, first_s * 2 ** min(max(times, 0), 30)) * (1 + jitter / 2))
