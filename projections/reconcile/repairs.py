"""What follows from a check: a discrepancy is opened, goes on or ends, a repair begins, people are told. Pure.

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
"""Repairs. `wait`: the bank catches up by itself; `sync`: the Item is asked about; `compare`: its whole history is
read again and compared with what is known; `ask`: only people can tell."""
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
"""Repairs that are something to start."""

PERSISTS, REPAIRED, RESOLVED, WITHDRAWN = "persists", "repaired", "resolved", "withdrawn"
"""Outcomes. `persists`: people were told, and it is open still; `repaired`: it tied out after a repair; `resolved`: by
itself; `withdrawn`: nothing is claimed of the account any more."""

CHECKS_AFTER_MAX = 3
"""Checks that still see a gap after a repair that settles it, before people are told."""
PENDING_S = 14 * 86_400.0
"""A gap that pending rows explain, and that is the same for so long, is none of theirs: by then each has posted or is
gone (PLAID.md 1.2: mostly within 5 days, at most 14)."""
SYNC_AGAIN_S = 86_400.0
"""A balance is read by Plaid once a day and more: asking more often costs and brings nothing."""
COMPARE_AGAIN_S = 86_400.0
"""Of an Item: a whole history may be a million rows, and says the same an hour later."""

_FOR_NOW = frozenset({AHEAD_OF_ROWS, IN_REVIEW, SYNCING})
"""Reasons that pass: what was open before stays as it is."""
_BY_ROWS = frozenset({PENDING, SIGN, DUPLICATE_ITEM})


class Policy(NamedTuple):
    """When people are told, and when the Item's history was last read again for a comparison."""

    alert_after_s: float
    compared_at: datetime | None = None


class Step(NamedTuple):
    """What to do about an account. `start`: the repair to start now; `told`: whether people are to know."""

    act: Literal["nothing", "open", "keep", "close"]
    cause: str | None = None
    repair: str | None = None
    start: bool = False
    told: bool = False
    checks_after: int = 0
    outcome: str | None = None


NOTHING = Step("nothing")


def step(verdict: Verdict, known: Open | None, policy: Policy, now: datetime) -> Step:
    """Decide what follows from a check."""
    if verdict.state != GAP:
        if known is None:
            return NOTHING
        return _kept(known) if verdict.why in _FOR_NOW else _ended(verdict, known)
    cause = _cause(verdict, known)
    repair = REPAIRS[cause]
    if known is None or known.cause != cause:
        start = repair == SYNC or (repair == COMPARE and not _lately(policy.compared_at, COMPARE_AGAIN_S, now))
        told = known is not None and known.outcome == PERSISTS
        return Step("open" if known is None else "keep", cause, repair, start, told, 0, PERSISTS if told else None)
    start = repair == SYNC and not _lately(known.repaired_at, SYNC_AGAIN_S, now)
    after = known.checks_after + known.repair_done
    told = known.outcome == PERSISTS or _persists(known, verdict, after, policy, now)
    return Step("keep", cause, repair, start, told, after, PERSISTS if told else None)


def _kept(known: Open) -> Step:
    return Step("nothing", known.cause, known.repair, checks_after=known.checks_after, outcome=known.outcome)


def _ended(verdict: Verdict, known: Open) -> Step:
    if verdict.state != TIED_OUT:
        return Step("close", outcome=WITHDRAWN)
    return Step("close", outcome=RESOLVED if known.repaired_at is None else REPAIRED)


def _cause(verdict: Verdict, known: Open | None) -> str:
    """The cause to go on with: rows that came later and happen to add up to an old gap are not its cause."""
    cause = verdict.why or UNKNOWN
    if known is not None and known.cause == MISSING_ROWS and known.gap == verdict.gap and cause in _BY_ROWS:
        return MISSING_ROWS
    return cause


def _persists(known: Open, verdict: Verdict, after: int, policy: Policy, now: datetime) -> bool:
    repair = REPAIRS[known.cause]
    if repair == WAIT:
        return known.gap == verdict.gap and not _lately(known.gap_at, PENDING_S, now)
    if repair == SYNC:
        return not _lately(known.cause_at, policy.alert_after_s, now)
    return after >= CHECKS_AFTER_MAX or not _lately(known.cause_at, policy.alert_after_s, now)


def _lately(at: datetime | None, within_s: float, now: datetime) -> bool:
    return at is not None and now - at < timedelta(seconds=within_s)
