"""Tie-out: compare an account's ledger with its own rows and with its bank, and compute the gap. Pure.

All amounts have the ledger's sign, debits less credits: money held is positive, money owed is negative. A gap is the
bank's balance less the ledger's.
"""

import datetime
from collections.abc import Mapping
from decimal import Context, Decimal, localcontext
from typing import Any, NamedTuple

from msgspec import Struct

TIED_OUT, GAP, NOT_COMPARABLE = "tied_out", "gap", "not_comparable"
"""Results of a check. `not_comparable`: nothing is claimed, for one of the reasons below."""

NO_OPENING, CONTINUED, UNLINKED, NO_BALANCE = "no_opening", "continued", "unlinked", "no_balance"
NO_FEED, AHEAD_OF_ROWS, IN_REVIEW, SYNCING = "no_feed", "ahead_of_rows", "in_review", "syncing"
"""Reasons why nothing is claimed: the account has no opening balance yet; a younger account continues it; its Item is
unlinked; the bank reports no balance; the bank reports no rows of it (many loans); the only balance is a real-time one
that is younger than the last sync; the missing rows wait for a person's review; a sync is due or under way, and may
bring what is missing."""

PENDING, STALE_BALANCE, HISTORY_INCOMPLETE = "pending", "stale_balance", "history_incomplete"
SIGN, CURRENCY, DUPLICATE_ITEM = "sign", "currency", "duplicate_item"
MISSING_ROWS, UNKNOWN = "missing_rows", "unknown"
CAUSES = (PENDING, STALE_BALANCE, HISTORY_INCOMPLETE, SIGN, CURRENCY, DUPLICATE_ITEM, MISSING_ROWS, UNKNOWN)

BANK, ROWS = "bank", "rows"
"""Counterparts of the ledger: the balance that the bank reports, or the account's own rows."""

TOLERANCE = Decimal("0.01")
"""In units of the currency: a gap up to it is none."""
EXACT = Context(prec=200)
"""Digits of all arithmetic here: amounts have at most 38, sums of a million of them 44. Python's own 28 would round."""
COMPLETE = "HISTORICAL_UPDATE_COMPLETE"
LIABILITIES = frozenset({"credit", "loan"})
"""Types of accounts whose `current` is the amount that the user owes. Source: PLAID.md 1.4."""
WITHOUT_FEED = frozenset({"loan", "investment", "brokerage", "other"})
"""Types of accounts of which some banks report a changing balance and never a row."""
CACHED = "cached"


class Report(NamedTuple):
    """A balance as the bank reported it. Units: `current` as Plaid has it; `known_at` in microseconds since 1970, UTC.

    `changeset` is the offset of the first report; later ones were equal. `updated_on` is the bank's own date, if any.
    """

    source: str
    current: Decimal
    currency: str
    changeset: int
    known_at: int
    updated_on: datetime.date | None = None


class Layers(NamedTuple):
    """An amount for each layer of the ledger."""

    posted: Decimal = Decimal(0)
    pending: Decimal = Decimal(0)


class Line(NamedTuple):
    """A transaction of the account. Units: `amount` with Plaid's sign, positive leaves the account.

    `known_at` in microseconds since 1970, UTC. The ledger has no amount of a row that is removed or in review.
    """

    own_id: str
    amount: Decimal
    currency: str
    pending: bool
    date: datetime.date
    last_changeset: int
    known_at: int
    removed: bool = False
    in_review: bool = False

    @property
    def counts(self) -> bool:
        """Return True where the ledger has the row's amount."""
        return not (self.removed or self.in_review)


class DuplicateAccount(NamedTuple):
    """An account of another live Item with the same bank and mask, with its recent rows.

    `linked`: account matching has found that one of both continues the other.
    """

    item_id: str
    account_id: str
    linked: bool
    rows: frozenset[tuple[datetime.date, Decimal]]


class Details(Struct, frozen=True, kw_only=True):
    """Facts that are read only for an account with a gap.

    `lines`: its rows that are pending, or changed since it last tied out. `posted_then`: the ledger's posted balance
    right after the changeset of the balance. `pending_at_opening`: its pending layer when it was opened.
    Units: `now` in microseconds since 1970, UTC.
    """

    lines: tuple[Line, ...] = ()
    posted_then: Decimal | None = None
    pending_at_opening: Decimal = Decimal(0)
    duplicates: tuple[DuplicateAccount, ...] = ()
    now: int = 0


class Facts(Struct, frozen=True, kw_only=True):
    """State of an account at one moment.

    `reports`: the last balance of each source. `ledger`, `openings`, `rows`: by currency; `rows` are sums of live rows
    with Plaid's sign. `last_sync_at`: start of the last sync whose rows are all here, in microseconds since 1970, UTC.
    `is_behind`: the Item is due, or its last record is not folded. `tied_at` is the first offset with which it has not
    tied out.
    """

    item_id: str
    account_id: str
    type: str
    reports: tuple[Report, ...]
    ledger: Mapping[str, Layers]
    openings: Mapping[str, Decimal]
    rows: Mapping[str, Layers]
    opened: int | None
    is_continued: bool = False
    is_unlinked: bool = False
    has_rows: bool = True
    history_status: str | None = COMPLETE
    history_incomplete: bool = False
    missing_rows: int = 0
    last_sync_at: int | None = None
    is_behind: bool = False
    tied_at: int | None = None


class Verdict(NamedTuple):
    """Result of a check. `why` is the cause of a gap, or the reason why nothing is claimed.

    Units: `ledger`, `bank`, `gap` in the currency, with the ledger's sign.
    """

    state: str
    why: str | None = None
    against: str = BANK
    currency: str | None = None
    ledger: Decimal | None = None
    bank: Decimal | None = None
    gap: Decimal = Decimal(0)
    report: Report | None = None
    evidence: Mapping[str, Any] = {}


def compare(facts: Facts) -> Verdict:
    """Compare an account's ledger with its rows, then with its bank. A gap to the bank has no cause yet.

    A balance of either source is enough to tie out: of two that a bank reports one may be older than its rows.
    """
    with localcontext(EXACT):
        return _compare(facts)


def _compare(facts: Facts) -> Verdict:
    if facts.is_continued:
        return _no_claim(facts, CONTINUED)
    has_no_feed = not facts.has_rows and facts.type in WITHOUT_FEED
    if facts.opened is None:
        return _no_claim(facts, NO_FEED if has_no_feed else NO_OPENING)
    internal = _compare_with_rows(facts)
    if internal is not None:
        return internal
    if facts.is_unlinked:
        return _no_claim(facts, UNLINKED)
    if not facts.reports:
        return _no_claim(facts, NO_BALANCE)
    # A real-time balance that was requested between two syncs may contain rows that no sync has brought yet.
    last_sync_at = facts.last_sync_at or 0
    comparable = [report for report in facts.reports if report.source == CACHED or report.known_at <= last_sync_at]
    if not comparable:
        return _no_claim(facts, AHEAD_OF_ROWS)
    verdicts = [_compare_with_bank(facts, report) for report in comparable]
    tied_out = next((verdict for verdict in verdicts if verdict.state == TIED_OUT), None)
    if tied_out is not None:
        return tied_out
    if has_no_feed:
        return _no_claim(facts, NO_FEED)
    if facts.is_behind:
        return _no_claim(facts, SYNCING)
    return max(verdicts, key=lambda verdict: verdict.report.known_at if verdict.report else 0)


def _compare_with_bank(facts: Facts, report: Report) -> Verdict:
    verdict = _with_balance(facts, report, GAP)
    assert verdict.bank is not None
    assert verdict.ledger is not None
    gap = verdict.bank - verdict.ledger
    is_of_currency = not facts.openings or report.currency in facts.openings
    tied_out = abs(gap) <= TOLERANCE and is_of_currency
    return verdict._replace(state=TIED_OUT) if tied_out else verdict._replace(gap=gap)


def _compare_with_rows(facts: Facts) -> Verdict | None:
    """Return the gap between the ledger and its own rows, in any currency and layer; None where there is none."""
    for currency in sorted({*facts.ledger, *facts.rows}):
        ledger, rows = facts.ledger.get(currency, Layers()), facts.rows.get(currency, Layers())
        opening = facts.openings.get(currency, Decimal(0))
        for layer, actual, expected in (
            ("posted", ledger.posted, opening - rows.posted),
            ("pending", ledger.pending, -rows.pending),
        ):
            if actual != expected:
                evidence = {"layer": layer, "opening": str(opening)}
                return Verdict(GAP, UNKNOWN, ROWS, currency, actual, expected, expected - actual, evidence=evidence)
    return None


def _no_claim(facts: Facts, reason: str) -> Verdict:
    report = max(facts.reports, key=lambda report: report.known_at, default=None)
    return Verdict(NOT_COMPARABLE, reason) if report is None else _with_balance(facts, report, NOT_COMPARABLE, reason)


def _with_balance(facts: Facts, report: Report, state: str, why: str | None = None) -> Verdict:
    ledger = facts.ledger.get(report.currency, Layers()).posted
    bank = -report.current if facts.type in LIABILITIES else report.current
    return Verdict(state, why, currency=report.currency, ledger=ledger, bank=bank, report=report)
