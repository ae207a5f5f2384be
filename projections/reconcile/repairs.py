"""Repairs: decide after a check to open, update or close a discrepancy, to start a repair, or to alert people. Pure.

Units: times are aware, in UTC; periods in seconds.
"""

from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from projections.reconcile.tie_out import (
    AHEAD_OF_ROWS,
    CURRENCY,
    DUPLICATE_ITEM,
    GAP,
    HISTORY_INCOMPLETE,
    IN_REVIEW,
    MISSING_ROWS,
    PENDING,
    SIGN,
    STALE_BALANCE,
    SYNCING,
    TIED_OUT,
    UNKNOWN,
    Verdict,
)
from runtime.operators.reconciliations import Open

WAIT, SYNC, COMPARE, ASK = "wait", "sync", "compare", "ask"
"""Repairs. `wait`: the bank catches up by itself; `sync`: the Item is synced; `compare`: its whole history is read
again and compared with the known one; `ask`: only people can decide."""
REPAIRS = {
    PENDING: WAIT,
    STALE_BALANCE: SYNC,
    HISTORY_INCOMPLETE: SYNC,
    MISSING_ROWS: COMPARE,
    SIGN: ASK,
    CURRENCY: ASK,
    DUPLICATE_ITEM: ASK,
    UNKNOWN: ASK,
}
STARTED = frozenset({SYNC, COMPARE})
"""Repairs that request a sync."""

PERSISTS, REPAIRED, RESOLVED, WITHDRAWN = "persists", "repaired", "resolved", "withdrawn"
"""Outcomes. `persists`: people were alerted, and it is still open; `repaired`: it tied out after a repair; `resolved`:
by itself; `withdrawn`: nothing is claimed of the account any more."""

CHECKS_AFTER_MAX = 3
"""Checks that still find a gap after a repair that should end it, before people are alerted."""
PENDING_S = 14 * 86_400.0
"""Longest time in which pending rows explain an unchanged gap: by then each has posted or is gone (PLAID.md 1.2: mostly
within 5 days, at most 14)."""
SYNC_AGAIN_S = 86_400.0
"""Plaid reads a balance once a day and more: more requests cost and bring nothing."""
COMPARE_AGAIN_S = 86_400.0
"""Of an Item: a whole history may be a million rows, and is the same an hour later."""

_TRANSIENT = frozenset({AHEAD_OF_ROWS, IN_REVIEW, SYNCING})
"""Reasons that pass: an open discrepancy stays as it is."""
_BY_ROWS = frozenset({PENDING, SIGN, DUPLICATE_ITEM})


class Policy(NamedTuple):
    """Delay before an alert, and the time of the Item's last comparison of its whole history."""

    alert_after_s: float
    compared_at: datetime | None = None


class Step(NamedTuple):
    """Action for an account. `start`: start the repair now; `alert`: alert people."""

    act: Literal["nothing", "open", "keep", "close"]
    cause: str | None = None
    repair: str | None = None
    start: bool = False
    alert: bool = False
    checks_after: int = 0
    outcome: str | None = None


NOTHING = Step("nothing")


def step(verdict: Verdict, known: Open | None, policy: Policy, now: datetime) -> Step:
    """Decide the action after a check; `known` is the account's open discrepancy."""
    if verdict.state != GAP:
        if known is None:
            return NOTHING
        if verdict.why in _TRANSIENT:
            return Step("nothing", known.cause, known.repair, checks_after=known.checks_after, outcome=known.outcome)
        if verdict.state != TIED_OUT:
            return Step("close", outcome=WITHDRAWN)
        return Step("close", outcome=RESOLVED if known.repaired_at is None else REPAIRED)
    cause = verdict.why or UNKNOWN
    if known and known.cause == MISSING_ROWS and known.gap == verdict.gap and cause in _BY_ROWS:
        cause = MISSING_ROWS  # rows that came later and happen to equal an old gap are not its cause
    repair = REPAIRS[cause]
    if known is None or known.cause != cause:
        start = repair == SYNC or (repair == COMPARE and not _is_within(policy.compared_at, COMPARE_AGAIN_S, now))
        alert = known is not None and known.outcome == PERSISTS
        return Step("open" if known is None else "keep", cause, repair, start, alert, 0, PERSISTS if alert else None)
    start = repair == SYNC and not _is_within(known.repaired_at, SYNC_AGAIN_S, now)
    after = known.checks_after + known.repair_done
    alert = known.outcome == PERSISTS or _persists(known, verdict, after, policy, now)
    return Step("keep", cause, repair, start, alert, after, PERSISTS if alert else None)


def _persists(known: Open, verdict: Verdict, after: int, policy: Policy, now: datetime) -> bool:
    repair = REPAIRS[known.cause]
    if repair == WAIT:
        return known.gap == verdict.gap and not _is_within(known.gap_at, PENDING_S, now)
    is_old = not _is_within(known.cause_at, policy.alert_after_s, now)
    return is_old or (repair != SYNC and after >= CHECKS_AFTER_MAX)


def _is_within(time: datetime | None, period_s: float, now: datetime) -> bool:
    return time is not None and now - time < timedelta(seconds=period_s)
