"""Names the cause of a gap between an account's ledger and its bank. Pure.

What explains a gap to the last unit goes before what only makes it likely, and of two explanations the simpler one:
all pending rows before one of them, one before several. A set of rows that happens to add up explains nothing where
there are many sets, so only so many are tried that chance finds one in a hundred gaps at most.
"""

import itertools
import math
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

NEW_US = 7 * 86_400 * 1_000_000
"""So long a bank may take to count in its balance what it has told already: a weekend with holidays around it."""
CHANCE_SHARE = 0.01
"""Sets of rows tried, as a share of the different sums that they can have: so often a gap is explained by chance."""
SET_MAX = 4
"""Rows of a set that is tried: no bank lags with five rows and is ahead with others."""
SETS_MAX = 20_000
"""Sets tried at most, whatever chance allows: some 10 ms."""
ROWS_NAMED_MAX = 20
"""Own ids in the evidence: enough to look at, and a bound for a row that operators read."""

Evidence = Mapping[str, Any]


class _Case(NamedTuple):
    """A gap with all that may explain it."""

    facts: Facts
    details: Details
    verdict: Verdict

    @property
    def gap(self) -> Decimal:
        return self.verdict.gap

    def explains(self, amount: Decimal) -> bool:
        """Whether an amount is the gap, and none by itself."""
        return abs(amount) > TOLERANCE and abs(self.gap - amount) <= TOLERANCE

    @property
    def since(self) -> int:
        """First offset that the account has not tied out with. Its opening is a point at which it did."""
        return max(self.facts.tied_at or 0, (self.facts.opened or 0) + 1)


class _Effect(NamedTuple):
    """What a row makes of the gap, where the balance holds it and the ledger does not, or the other way round."""

    line: Line
    amount: Decimal


def named(facts: Facts, details: Details, verdict: Verdict) -> Verdict:
    """Name the cause of a gap with the bank. Any other verdict is given back as it is."""
    if verdict.state != GAP or verdict.why is not None:
        return verdict
    case = _Case(facts, details, verdict)
    with localcontext(EXACT):
        for name, look in _ORDER:
            evidence = look(case)
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
    """The balance is that of an earlier moment: the ledger had it then, and rows came since."""
    bank, report, then = case.verdict.bank, case.verdict.report, case.details.posted_then
    assert bank is not None
    assert report is not None
    if then is not None and abs(bank - then) <= TOLERANCE:
        return {"balance_changeset": report.changeset, "ledger_then": str(then)}
    if report.updated_on is None:
        return None
    later = [line for line in _new_lines(case) if line.counts and line.date > report.updated_on]
    if not case.explains(_total(later)):
        return None
    return {"balance_date": report.updated_on.isoformat(), **_rows(later)}


def _sign_of_balance(case: _Case) -> Evidence | None:
    bank, ledger = case.verdict.bank, case.verdict.ledger
    assert bank is not None
    assert ledger is not None
    if abs(bank + ledger) > TOLERANCE:
        return None
    return {"of": "balance"}


def _all_pending(case: _Case) -> Evidence | None:
    """All pending rows are in the balance, or were when the account was opened; or none of the new rows is."""
    effects = _effects(case)
    ahead = [effect for effect in effects if effect.line.pending and effect.line.counts]
    behind = [effect for effect in effects if not effect.line.pending or effect.line.removed]
    for what, some in (("held", ahead), ("not_held", behind), ("both", effects)):
        if case.explains(_sum(some)):
            return {"balance": what, **_rows(effect.line for effect in some)}
    assert case.verdict.currency is not None
    layer = case.facts.ledger.get(case.verdict.currency, Layers()).pending
    since_opening = layer - case.details.pending_at_opening
    if case.explains(since_opening):
        return {"balance": "held_since_opening", "pending_at_opening": str(case.details.pending_at_opening)}
    return None


def _doubled(case: _Case) -> Evidence | None:
    """Rows that are there twice, here or under the other Item, are counted twice, or not at all."""
    if not case.details.twins:
        return None
    theirs = frozenset().union(*(twin.rows for twin in case.details.twins))
    ours: dict[tuple[object, Decimal], int] = {}
    for line in case.details.lines:
        key = (line.date, line.amount)
        ours[key] = ours.get(key, 0) + 1
    both = [line for line in _new_lines(case) if (line.date, line.amount) in theirs or ours[line.date, line.amount] > 1]
    once = {(line.date, line.amount): line for line in both}.values()
    for some in (both, list(once)):
        if case.explains(_total(some)) or case.explains(-_total(some)):
            return {**_twins(case), **_rows(some)}
    for line in once:
        if case.explains(line.amount) or case.explains(-line.amount):
            return {**_twins(case), **_rows([line])}
    return None


def _one_pending(case: _Case) -> Evidence | None:
    for effect in _effects(case):
        if case.explains(effect.amount):
            return {"balance": "held" if effect.line.pending else "not_held", **_rows([effect.line])}
    return None


def _in_review(case: _Case) -> Evidence | None:
    """Rows that a review holds are the bank's, and not yet the ledger's."""
    held = [line for line in case.details.lines if line.held and _is_of(line, case) and not line.pending]
    if case.explains(-_total(held)):
        return _rows(held)
    for line in held:
        if case.explains(-line.amount):
            return _rows([line])
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
    """The bank counts a row the other way round: the gap is twice the row."""
    for line in _new_lines(case):
        if line.counts and not line.pending and case.explains(2 * line.amount):
            return {"of": "row", **_rows([line])}
    return None


def _foreign_rows(case: _Case) -> Evidence | None:
    foreign = [
        line
        for line in case.details.lines
        if line.counts and not _is_of(line, case) and line.last_changeset >= case.since
    ]
    if not foreign:
        return None
    return {"currencies": sorted({line.currency for line in foreign}), **_rows(foreign)}


def _some_pending(case: _Case) -> Evidence | None:
    """Some of the rows explain the gap together, of so few that this is no chance."""
    effects = _effects(case)
    found = _adding_up(case, effects)
    return None if found is None else {"balance": "some", **_rows(effect.line for effect in found)}


def _has_duplicate(case: _Case) -> Evidence | None:
    """Another Item has the same account, and the rules do not know which of both goes on."""
    return None if all(twin.linked for twin in case.details.twins) else _twins(case)


def _moved_without_row(case: _Case) -> Evidence | None:
    """It tied out before, at its opening at the latest, and nothing else explains what the balance did since."""
    if case.facts.opened is None:
        return None
    return {"tied_out_before": case.since}


_ORDER: Sequence[tuple[str, Callable[[_Case], Evidence | None]]] = (
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
"""The first one that finds evidence names the cause."""


def _is_of(line: Line, case: _Case) -> bool:
    return line.currency == case.verdict.currency


def _new_lines(case: _Case) -> list[Line]:
    """Rows of the currency that were changed lately, and since the account last tied out."""
    return [line for line in case.details.lines if _is_of(line, case) and _is_new(line, case)]


def _is_new(line: Line, case: _Case) -> bool:
    return line.last_changeset >= case.since and case.details.now - line.known_at <= NEW_US


def _effects(case: _Case) -> list[_Effect]:
    """What each row adds to the gap, should the balance count it already (pending) or not yet (posted, removed)."""
    effects: list[_Effect] = []
    for line in case.details.lines:
        if line.held or not _is_of(line, case):
            continue
        if line.pending and not line.removed:
            effects.append(_Effect(line, -line.amount))
        elif not line.pending and _is_new(line, case):
            effects.append(_Effect(line, -line.amount if line.removed else line.amount))
    return effects


def _adding_up(case: _Case, effects: Sequence[_Effect]) -> Sequence[_Effect] | None:
    """The smallest set of rows that explains the gap, of all sets that chance allows to try."""
    bound = min(SETS_MAX, _different_sums(effects) * CHANCE_SHARE)
    tried = 0
    for size in range(2, min(SET_MAX, len(effects) - 1) + 1):
        tried += math.comb(len(effects), size)
        if tried > bound:
            return None
        for some in itertools.combinations(effects, size):
            if case.explains(_sum(some)):
                return some
    return None


def _different_sums(effects: Sequence[_Effect]) -> int:
    """How many different sums sets of these amounts can have: their range in steps of their common measure."""
    if not effects:
        return 0
    exponent = max(-int(effect.amount.as_tuple().exponent) for effect in effects)
    amounts = [int(abs(effect.amount).scaleb(max(exponent, 0))) for effect in effects]
    step = math.gcd(*amounts)
    return sum(amounts) // step if step else 0


def _sum(effects: Iterable[_Effect]) -> Decimal:
    return sum((effect.amount for effect in effects), Decimal(0))


def _total(lines: Iterable[Line]) -> Decimal:
    return sum((line.amount for line in lines), Decimal(0))


def _rows(lines: Iterable[Line]) -> dict[str, Any]:
    own_ids = [line.own_id for line in lines]
    return {"rows": len(own_ids), "own_ids": own_ids[:ROWS_NAMED_MAX]}


def _twins(case: _Case) -> dict[str, Any]:
    return {"items": sorted({twin.item_id for twin in case.details.twins})}
