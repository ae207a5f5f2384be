"""Whether an account's ledger ties out with its own rows and with its bank, and by how much it does not. Pure.

Everything here has the ledger's sign: what the ledger has of an account is debits less credits, so money held is
positive and money owed is negative. A gap is what the bank says less what the ledger has.
"""

import datetime
from collections.abc import Mapping
from decimal import Context, Decimal, localcontext
from typing import Any, NamedTuple

from msgspec import Struct

TIED_OUT, GAP, NOT_COMPARABLE = "tied_out", "gap", "not_comparable"
"""What a check finds. `not_comparable`: nothing is claimed, and the reason says why."""

NO_OPENING, CONTINUED, UNLINKED, NO_BALANCE = "no_opening", "continued", "unlinked", "no_balance"
NO_FEED, AHEAD_OF_ROWS, IN_REVIEW, SYNCING = "no_feed", "ahead_of_rows", "in_review", "syncing"
"""Why nothing can be claimed: the account has no opening balance yet; a younger account goes on from it; its Item is
unlinked; the bank reports no balance; the bank tells no rows of it (many loans); the only balance is a real-time one
that is younger than the last sync; rows that wait for a person's review are what is missing; a sync is due or under
way, and what it brings may be what is missing."""

PENDING, STALE_BALANCE, HISTORY_INCOMPLETE = "pending", "stale_balance", "history_incomplete"
SIGN, CURRENCY, DUPLICATE_ITEM = "sign", "currency", "duplicate_item"
MISSING_ROWS, UNKNOWN = "missing_rows", "unknown"
CAUSES = (PENDING, STALE_BALANCE, HISTORY_INCOMPLETE, SIGN, CURRENCY, DUPLICATE_ITEM, MISSING_ROWS, UNKNOWN)

BANK, ROWS = "bank", "rows"
"""What the ledger is compared with: the balance that the bank reports, or the account's own rows."""

TOLERANCE = Decimal("0.01")
"""In units of the currency: a gap up to it is none."""
EXACT = Context(prec=200)
"""Digits of all arithmetic here: amounts have at most 38, sums of a million of them 44. Python's own 28 would round."""
COMPLETE = "HISTORICAL_UPDATE_COMPLETE"
LIABILITIES = frozenset({"credit", "loan"})
"""Types of accounts whose `current` is what the user owes. Source: PLAID.md 1.4."""
WITHOUT_FEED = frozenset({"loan", "investment", "brokerage", "other"})
"""Types of accounts of which some banks tell a balance that moves, and never a row."""
CACHED = "cached"


class Report(NamedTuple):
    """A balance as the bank reported it. Units: `current` as Plaid has it; `known_at` in microseconds since 1970, UTC.

    `changeset` is the offset that said it first; it has been repeated without change since. `updated_on` is the
    bank's own date of it, where it says one.
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

    `known_at` in microseconds since 1970, UTC. `removed`, `held`: the bank took it back, or a review holds it: the
    ledger has nothing of it then.
    """

    own_id: str
    amount: Decimal
    currency: str
    pending: bool
    date: datetime.date
    last_changeset: int
    known_at: int
    removed: bool = False
    held: bool = False

    @property
    def counts(self) -> bool:
        """Whether the ledger has it."""
        return not (self.removed or self.held)


class Twin(NamedTuple):
    """An account of another live Item with the same bank and mask, and what of its rows is known lately.

    `linked`: one of both goes on from the other, as far as the rules know.
    """

    item_id: str
    account_id: str
    linked: bool
    rows: frozenset[tuple[datetime.date, Decimal]]


class Details(Struct, frozen=True, kw_only=True):
    """What is read of an account only where it has a gap.

    `lines`: its rows that are pending, or were changed since it last tied out. `posted_then`: the ledger's posted
    balance right after the changeset of the balance. `pending_at_opening`: its pending layer when it was opened.
    Units: `now` in microseconds since 1970, UTC.
    """

    lines: tuple[Line, ...] = ()
    posted_then: Decimal | None = None
    pending_at_opening: Decimal = Decimal(0)
    twins: tuple[Twin, ...] = ()
    now: int = 0


class Facts(Struct, frozen=True, kw_only=True):
    """What is known of an account at one moment.

    `reports`: the last balance of each source. `ledger`, `openings`, `rows`: by currency; `rows` are sums of live rows
    with Plaid's sign. `last_sync_at` in microseconds since 1970, UTC: when the last sync began whose rows are all here.
    `is_behind`: the Item is due, or its last record is not folded. `tied_at` is the first offset that it has not tied
    out with.
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
    """What a check found. `why` is a cause where there is a gap, and a reason where nothing is claimed.

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


def expected(report: Report, account_type: str) -> Decimal:
    """What the ledger has where it agrees with a balance: owed is negative."""
    return -report.current if account_type in LIABILITIES else report.current


def compared(facts: Facts) -> Verdict:
    """Compare an account's ledger with its rows, then with its bank. A gap that is found has no cause yet.

    A balance of either source is enough to tie out: of two that a bank reports one may be older than its rows.
    """
    with localcontext(EXACT):
        return _compared(facts)


def _compared(facts: Facts) -> Verdict:
    if facts.is_continued:
        return _nothing_claimed(facts, CONTINUED)
    has_no_feed = not facts.has_rows and facts.type in WITHOUT_FEED
    if facts.opened is None:
        return _nothing_claimed(facts, NO_FEED if has_no_feed else NO_OPENING)
    internal = _against_rows(facts)
    if internal is not None:
        return internal
    if facts.is_unlinked:
        return _nothing_claimed(facts, UNLINKED)
    if not facts.reports:
        return _nothing_claimed(facts, NO_BALANCE)
    comparable = [report for report in facts.reports if not _is_ahead_of_rows(report, facts)]
    if not comparable:
        return _nothing_claimed(facts, AHEAD_OF_ROWS)
    found = [_against(facts, report) for report in comparable]
    tied = [verdict for verdict in found if verdict.state == TIED_OUT]
    if tied:
        return tied[0]
    if has_no_feed:
        return _nothing_claimed(facts, NO_FEED)
    if facts.is_behind:
        return _nothing_claimed(facts, SYNCING)
    return max(found, key=lambda verdict: verdict.report.known_at if verdict.report else 0)


def _against(facts: Facts, report: Report) -> Verdict:
    bank, ledger = expected(report, facts.type), facts.ledger.get(report.currency, Layers()).posted
    gap = bank - ledger
    ties_out = abs(gap) <= TOLERANCE and _is_of_its_currency(facts, report)
    state = TIED_OUT if ties_out else GAP
    return Verdict(
        state,
        currency=report.currency,
        ledger=ledger,
        bank=bank,
        gap=gap if state == GAP else Decimal(0),
        report=report,
    )


def _is_of_its_currency(facts: Facts, report: Report) -> bool:
    """Whether the balance is in the currency that the account was opened in: another one is none of the ledger's."""
    return not facts.openings or report.currency in facts.openings


def _against_rows(facts: Facts) -> Verdict | None:
    """The gap between the ledger and the rows that it is made of, by currency and layer; None where there is none."""
    for currency in sorted({*facts.ledger, *facts.rows}):
        ledger, rows = facts.ledger.get(currency, Layers()), facts.rows.get(currency, Layers())
        opening = facts.openings.get(currency, Decimal(0))
        for layer, has, wanted in (
            ("posted", ledger.posted, opening - rows.posted),
            ("pending", ledger.pending, -rows.pending),
        ):
            if has != wanted:
                evidence = {"layer": layer, "opening": str(opening)}
                return Verdict(GAP, UNKNOWN, ROWS, currency, has, wanted, wanted - has, evidence=evidence)
    return None


def _is_ahead_of_rows(report: Report, facts: Facts) -> bool:
    """Whether a balance may hold what no sync has brought yet: one that was asked for between two syncs does."""
    return report.source != CACHED and (facts.last_sync_at or 0) < report.known_at


def _nothing_claimed(facts: Facts, reason: str) -> Verdict:
    report = max(facts.reports, key=lambda report: report.known_at, default=None)
    if report is None:
        return Verdict(NOT_COMPARABLE, reason)
    ledger = facts.ledger.get(report.currency, Layers()).posted
    return Verdict(
        NOT_COMPARABLE,
        reason,
        currency=report.currency,
        ledger=ledger,
        bank=expected(report, facts.type),
        report=report,
    )
