"""Diagnosis: find the cause of a gap between an account's ledger and its bank. Pure.

An exact explanation goes before one that only makes the gap likely, and of two explanations the simpler one: all
pending rows before one of them, one before several. Where many sets of rows exist, one of them equals the gap by
chance; so the number of sets is limited until chance explains at most one gap in a hundred.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

from projections.reconcile.tie_out import (
    COMPLETE,
    CURRENCY,
    DUPLICATE_ITEM,
    EXACT,
    GAP,
    HISTORY_INCOMPLETE,
    IN_REVIEW,
    MISSING_ROWS,
    NOT_COMPARABLE,
    PENDING,
    SIGN,
    STALE_BALANCE,
    TOLERANCE,
    UNKNOWN,
    Details,
    Facts,
    Layers,
    Line,
    Verdict,
)
from schemas.times import SECOND_US

NEW_US = 7 * 86_400 * SECOND_US
"""Longest delay of a bank's balance behind its rows: a weekend with holidays around it."""
CHANCE_SHARE = 0.01
"""Sets of rows tried, as a share of the different sums that they can have: the rate of explanations by chance."""
SET_MAX = 4
"""Rows of a set that is tried: no bank lags with five rows and is ahead with others."""
SETS_MAX = 20_000
"""Sets tried at most, whatever chance allows: some 10 ms."""
ROWS_NAMED_MAX = 20
"""Own ids in the evidence: enough to check, and a bound for a row that operators read."""

Evidence = Mapping[str, Any]


class _Effect(NamedTuple):
    """Effect of a row on the gap, where the balance has it and the ledger does not, or the reverse."""

    line: Line
    amount: Decimal


class _Case(NamedTuple):
    """A gap with all that may explain it."""

    facts: Facts
    details: Details
    verdict: Verdict

    def explains(self, amount: Decimal) -> bool:
        """Return True where an amount equals the gap and is not zero itself."""
        return abs(amount) > TOLERANCE and abs(self.verdict.gap - amount) <= TOLERANCE

    @property
    def since(self) -> int:
        """Return the first offset with which the account has not tied out; it did at its opening."""
        return max(self.facts.tied_at or 0, (self.facts.opened or 0) + 1)

    def has_currency(self, line: Line) -> bool:
        return line.currency == self.verdict.currency

    def is_new(self, line: Line) -> bool:
        return line.last_changeset >= self.since and self.details.now - line.known_at <= NEW_US

    def new_lines(self) -> list[Line]:
        """Return rows of the currency that changed lately, and since the account last tied out."""
        return [line for line in self.details.lines if self.has_currency(line) and self.is_new(line)]

    def effects(self) -> list[_Effect]:
        """Return the effect of each row, should the balance count it already (pending) or not yet (posted, removed)."""
        effects: list[_Effect] = []
        for line in self.details.lines:
            if line.in_review or not self.has_currency(line):
                continue
            if line.pending and not line.removed:
                effects.append(_Effect(line, -line.amount))
            elif not line.pending and self.is_new(line):
                effects.append(_Effect(line, -line.amount if line.removed else line.amount))
        return effects


def diagnose(facts: Facts, details: Details, verdict: Verdict) -> Verdict:
    """Return the verdict with the cause of a gap to the bank; any other verdict is returned unchanged."""
    if verdict.state != GAP or verdict.why is not None:
        return verdict
    case = _Case(facts, details, verdict)
    with localcontext(EXACT):
        for name, find_evidence in _CAUSES:
            evidence = find_evidence(case)
            if evidence is not None:
                state = NOT_COMPARABLE if name == IN_REVIEW else GAP
                return verdict._replace(state=state, why=name, evidence=evidence)
    return verdict._replace(why=UNKNOWN)


def _other_currency(case: _Case) -> Evidence | None:
    report, openings = case.verdict.report, case.facts.openings
    if report is None or not openings or report.currency in openings:
        return None
    return {"balance": report.currency, "ledger": sorted(openings)}


def _stale(case: _Case) -> Evidence | None:
    """Find a balance of an earlier moment: the ledger had it then, and rows came since."""
    bank, report, ledger_then = case.verdict.bank, case.verdict.report, case.details.posted_then
    assert bank is not None
    assert report is not None
    if ledger_then is not None and abs(bank - ledger_then) <= TOLERANCE:
        return {"balance_changeset": report.changeset, "ledger_then": str(ledger_then)}
    if report.updated_on is None:
        return None
    later = [line for line in case.new_lines() if line.counts and line.date > report.updated_on]
    if not case.explains(_total(later)):
        return None
    return {"balance_date": report.updated_on.isoformat(), **_rows(later)}


def _sign_of_balance(case: _Case) -> Evidence | None:
    assert case.verdict.bank is not None
    assert case.verdict.ledger is not None
    return {"of": "balance"} if abs(case.verdict.bank + case.verdict.ledger) <= TOLERANCE else None


def _all_pending(case: _Case) -> Evidence | None:
    """Find all pending rows in the balance, now or when the account was opened; or none of the new rows in it."""
    effects = case.effects()
    ahead = [effect for effect in effects if effect.line.pending and effect.line.counts]
    behind = [effect for effect in effects if not effect.line.pending or effect.line.removed]
    for balance, explaining in (("held", ahead), ("not_held", behind), ("both", effects)):
        if case.explains(_total(explaining)):
            return {"balance": balance, **_rows(effect.line for effect in explaining)}
    assert case.verdict.currency is not None
    layers = case.facts.ledger.get(case.verdict.currency, Layers())
    if case.explains(layers.pending - case.details.pending_at_opening):
        return {"balance": "held_since_opening", "pending_at_opening": str(case.details.pending_at_opening)}
    return None


def _doubled(case: _Case) -> Evidence | None:
    """Find rows that exist twice, here or under the other Item, and are counted twice, or not at all."""
    if not case.details.duplicates:
        return None
    theirs = frozenset().union(*(duplicate.rows for duplicate in case.details.duplicates))
    ours = Counter((line.date, line.amount) for line in case.details.lines)
    doubled = [
        line for line in case.new_lines() if (line.date, line.amount) in theirs or ours[line.date, line.amount] > 1
    ]
    once = list({(line.date, line.amount): line for line in doubled}.values())
    for lines in (doubled, once, *([line] for line in once)):
        if case.explains(_total(lines)) or case.explains(-_total(lines)):
            return {**_items(case), **_rows(lines)}
    return None


def _one_pending(case: _Case) -> Evidence | None:
    for effect in case.effects():
        if case.explains(effect.amount):
            return {"balance": "held" if effect.line.pending else "not_held", **_rows([effect.line])}
    return None


def _in_review(case: _Case) -> Evidence | None:
    """Find rows that the bank counts, and the ledger not before their review."""
    waiting = [line for line in case.details.lines if line.in_review and case.has_currency(line) and not line.pending]
    for lines in (waiting, *([line] for line in waiting)):
        if case.explains(-_total(lines)):
            return _rows(lines)
    return None


def _incomplete(case: _Case) -> Evidence | None:
    facts = case.facts
    if facts.history_status == COMPLETE and not facts.history_incomplete and not facts.missing_rows:
        return None
    return {
        "history_status": facts.history_status,
        "account_was_missing": facts.history_incomplete,
        "removals_waiting": facts.missing_rows,
    }


def _sign_of_row(case: _Case) -> Evidence | None:
    """Find a row that the bank counts with the opposite sign: the gap is twice the row."""
    for line in case.new_lines():
        if line.counts and not line.pending and case.explains(2 * line.amount):
            return {"of": "row", **_rows([line])}
    return None


def _foreign_rows(case: _Case) -> Evidence | None:
    lines = [line for line in case.details.lines if line.counts and line.last_changeset >= case.since]
    foreign = [line for line in lines if not case.has_currency(line)]
    return {"currencies": sorted({line.currency for line in foreign}), **_rows(foreign)} if foreign else None


def _some_pending(case: _Case) -> Evidence | None:
    """Find the smallest set of rows that equals the gap, among so few sets that this is no chance."""
    effects = case.effects()
    bound = min(SETS_MAX, _different_sums(effects) * CHANCE_SHARE)
    tried = 0
    for size in range(2, min(SET_MAX, len(effects) - 1) + 1):
        tried += math.comb(len(effects), size)
        if tried > bound:
            return None
        for explaining in itertools.combinations(effects, size):
            if case.explains(_total(explaining)):
                return {"balance": "some", **_rows(effect.line for effect in explaining)}
    return None


def _has_duplicate(case: _Case) -> Evidence | None:
    """Find another Item with the same account, where account matching has not linked the two."""
    return None if all(duplicate.linked for duplicate in case.details.duplicates) else _items(case)


def _moved_without_row(case: _Case) -> Evidence | None:
    """Find an account that tied out before (at its opening at the latest), where nothing else explains the change."""
    return None if case.facts.opened is None else {"tied_out_before": case.since}


_CAUSES: Sequence[tuple[str, Callable[[_Case], Evidence | None]]] = (
    (CURRENCY, _other_currency),
    (STALE_BALANCE, _stale),
    (SIGN, _sign_of_balance),
    (PENDING, _all_pending),
    (DUPLICATE_ITEM, _doubled),
    (PENDING, _one_pending),
    (IN_REVIEW, _in_review),
    (HISTORY_INCOMPLETE, _incomplete),
    (SIGN, _sign_of_row),
    (CURRENCY, _foreign_rows),
    (PENDING, _some_pending),
    (DUPLICATE_ITEM, _has_duplicate),
    (MISSING_ROWS, _moved_without_row),
)
"""In this order; the first one with evidence is the cause."""


def _different_sums(effects: Sequence[_Effect]) -> int:
    """Return the number of different sums that sets of these amounts can have: their range in steps of their gcd."""
    if not effects:
        return 0
    exponent = max(-int(effect.amount.as_tuple().exponent) for effect in effects)
    amounts = [int(abs(effect.amount).scaleb(max(exponent, 0))) for effect in effects]
    step = math.gcd(*amounts)
    return sum(amounts) // step if step else 0


def _total(rows: Iterable[Line | _Effect]) -> Decimal:
    return sum((row.amount for row in rows), Decimal(0))


def _rows(lines: Iterable[Line]) -> dict[str, Any]:
    own_ids = [line.own_id for line in lines]
    return {"rows": len(own_ids), "own_ids": own_ids[:ROWS_NAMED_MAX]}


def _items(case: _Case) -> dict[str, Any]:
    return {"items": sorted({duplicate.item_id for duplicate in case.details.duplicates})}
