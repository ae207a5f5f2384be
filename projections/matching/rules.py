"""Which new transactions are ones that are known under another id: rules, each with a score and its evidence. Pure.

The score is 0 to 100. Transactions are compared only within one account of the bank, whatever its ids, and in one
currency.

exact    Equal date, amount and description. 100.
near     Equal amount, at most NEAR_DAYS_MAX days apart. Likeness of the descriptions, less 5 a day; at least PLAUSIBLE
         where the old one still counts.
pending  A pending with a posted one of up to PENDING_DAYS_MAX days later, with the same amount or a tip more. Likeness,
         less 1 a day, less 10 for a tip, 5 more where the bank says that it was authorised on the pending one's date.
hold     The same with any other amount. Likeness, less 1 a day, less 30; at most HOLD_MAX.
amended  Both posted, at most a day apart, amounts within a tip, likeness of ALIKE_MIN or more. Likeness, less 5 a
         day, less 20.

A link needs LINK_MIN or more, to be the best for both sides, and MARGIN more than any other pair of either side.
Twins, equal in all that `exact` compares, cannot be told apart and pair off, unless one carries what a user said.
What is not linked and at least PLAUSIBLE is a question for a person where something is at stake: an old transaction
that still counts, so that one purchase would count twice; what a user said about it; or a choice among good pairs.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from typing import NamedTuple

from rapidfuzz import fuzz

from projections.matching.accounts import normalised
from projections.model.unit_of_work import AccountKey, Row
from schemas.encoding import codec
from schemas.log.records import Transaction

NEAR_DAYS_MAX = 3
"""Banks differ by a weekend in what they call the date of a posted transaction."""
PENDING_DAYS_MAX = 14
"""Longest that a transaction stays pending. Source: PLAID.md 1.3."""
DAYS_MAX = PENDING_DAYS_MAX
"""No rule looks further."""
TIP_MAX = Decimal("1.3")
"""A posted amount over its pending one. Tips are 10 to 25 percent; an estimate that ends lower, or higher than this,
says too little by itself."""
LINK_MIN = {"near": 85, "pending": 80}
"""Other rules ask a person at most."""
MARGIN = 10
PLAUSIBLE = 60
HOLD_MAX = 70
ALIKE_MIN = 90
"""Likeness from which another amount may be an amendment."""
MERCHANT_LIKENESS = 90
"""At least so alike are a pending and a posted transaction of one merchant: their texts are often quite different."""
STRANGER_LIKENESS = 60
"""At most so alike are transactions of two known merchants."""


Key = tuple[AccountKey, int, Decimal, str, str]
"""What `exact` compares: account, date, amount, currency and description."""


class Sketch(NamedTuple):
    """A transaction as the rules look at it.

    `scope` is the oldest id of its account at the bank, `account` the one that it has now. `is_gone`: the bank took it
    back in the very record that is looked at.
    """

    row: Row
    said: Transaction
    scope: AccountKey
    account: AccountKey
    day: int
    amount: Decimal
    description: str
    is_gone: bool

    @property
    def key(self) -> Key:
        """What `exact` compares."""
        return (self.scope, self.day, self.amount, self.said.currency, self.description)


class Pair(NamedTuple):
    """A new and an old transaction that may be one."""

    new: Sketch
    old: Sketch
    rule: str
    score: int
    evidence: str


class Question(NamedTuple):
    """A new transaction that is perhaps one of the old ones of these pairs, best first."""

    new: Sketch
    pairs: list[Pair]
    reason: str


class Matches(NamedTuple):
    """What is found: pairs that are certain enough, and what a person has to say."""

    links: list[Pair]
    questions: list[Question]


def sketch(row: Row, said: Transaction, *, scope: AccountKey, is_gone: bool = False) -> Sketch:
    """A row as the rules look at it; `said` are its payload."""
    return Sketch(
        row,
        said,
        scope,
        (row.item_id, said.account_id),
        date.fromisoformat(said.date).toordinal(),
        Decimal(said.amount),
        normalised(said.original_description or said.name),
        is_gone,
    )


def words_of(row: Row) -> Transaction:
    """The bank's last payload about a row."""
    said: Transaction = codec.decoder(row.schema)(row.payload, 0)[0]
    return said


def matches(new: Sequence[Sketch], old: Sequence[Sketch]) -> Matches:
    """Find which new transactions are old ones. The order of either side makes no difference."""
    accounts = {(one.scope, one.account) for one in new}
    # Others are no twins either: of an Item's own live rows a batch has as many as happen to be named in it.
    old = [one for one in old if any(one.scope == scope and _may_be(one, account) for scope, account in accounts)]
    new, old = sorted(new, key=_order), sorted(old, key=_order)
    twins = Counter(one.key for one in new) | Counter(one.key for one in old)
    links: list[Pair] = []
    questions: list[Question] = []
    # What the record takes back first: an Item's own transaction is nearer than one of another Item.
    for is_gone in (True, False):
        free = _without(new, links, questions)
        _exact(free, [one for one in _unlinked(old, links) if one.is_gone == is_gone], links, questions)
    found = _near(_without(new, links, questions), _unlinked(old, links))
    edited = {pair.old.key for pair in found if pair.old.row.user_fields}
    certain = [pair for pair in found if not (pair.old.key in edited and _has_linked_items(pair, twins))]
    links += _linked(certain, found)
    taken = {id(side) for pair in links for side in (pair.new, pair.old)}
    rest = defaultdict(list)
    for pair in found:
        if not {id(pair.new), id(pair.old)} & taken and pair.score >= PLAUSIBLE:
            rest[id(pair.new)].append(pair)
    for pairs in rest.values():
        if any(map(_is_at_stake, pairs)):
            pairs.sort(key=lambda pair: (-pair.score, pair.old.row.own_id))
            questions.append(Question(pairs[0].new, pairs, "likely"))
    return Matches(links, questions)


def _exact(new: Iterable[Sketch], old: Iterable[Sketch], links: list[Pair], questions: list[Question]) -> None:
    waiting: dict[tuple[Key, AccountKey], list[Sketch]] = defaultdict(list)
    for one in new:
        waiting[one.key, one.account].append(one)
    known: dict[Key, list[Sketch]] = defaultdict(list)
    for one in old:
        known[one.key].append(one)
    for (key, account), arrived in waiting.items():
        alike = [one for one in known.get(key, ()) if _may_be(one, account)]
        if len(alike) * len(arrived) > 1 and any(one.row.user_fields for one in alike):
            for one in arrived:
                pairs = [Pair(one, other, "exact", 100, _evidence(one, other, 100)) for other in alike]
                questions.append(Question(one, pairs, "twins"))
        else:
            for one, other in zip(arrived, alike, strict=False):
                known[key].remove(other)
                links.append(Pair(one, other, "exact", 100, _evidence(one, other, 100)))


def _near(new: Iterable[Sketch], old: Iterable[Sketch]) -> list[Pair]:
    by_day: dict[tuple[AccountKey, str, int], list[Sketch]] = defaultdict(list)
    for one in old:
        by_day[one.scope, one.said.currency, one.day].append(one)
    rivals = (
        (one, other)
        for one in (new if by_day else ())
        for day in range(one.day - DAYS_MAX, one.day + DAYS_MAX + 1)
        for other in by_day.get((one.scope, one.said.currency, day), ())
        if _may_be(other, one.account)
    )
    return [pair for one, other in rivals if (pair := _pair(one, other)) is not None]


def _pair(new: Sketch, old: Sketch) -> Pair | None:
    days = abs(new.day - old.day)
    if new.said.pending != old.said.pending:
        return _settled(new, old)
    if new.amount == old.amount and days <= NEAR_DAYS_MAX:
        likeness = _likeness(new, old)
        least = 0 if old.is_gone else PLAUSIBLE
        return Pair(new, old, "near", max(likeness - 5 * days, least), _evidence(new, old, likeness))
    if new.said.pending or days > 1 or not _within_tip(*sorted((abs(new.amount), abs(old.amount)))):
        return None
    likeness = _likeness(new, old)
    if likeness < ALIKE_MIN or (new.amount < 0) != (old.amount < 0):
        return None
    return Pair(new, old, "amended", likeness - 5 * days - 20, _evidence(new, old, likeness))


def _settled(new: Sketch, old: Sketch) -> Pair | None:
    """A pending and a posted transaction, whichever of the two came first."""
    pending, posted = (old, new) if old.said.pending else (new, old)
    days = posted.day - pending.day
    if not -1 <= days <= PENDING_DAYS_MAX or (new.amount < 0) != (old.amount < 0):
        return None
    likeness = _likeness(new, old)
    if new.said.merchant_entity_id is not None and new.said.merchant_entity_id == old.said.merchant_entity_id:
        likeness = max(likeness, MERCHANT_LIKENESS)
    evidence = _evidence(new, old, likeness)
    score = likeness - abs(days)
    is_tip = 0 < pending.amount < posted.amount and _within_tip(pending.amount, posted.amount)
    if pending.amount != posted.amount and not is_tip:
        return Pair(new, old, "hold", min(score - 30, HOLD_MAX), evidence)
    if is_tip:
        score -= 10
    if posted.said.authorized_date in (pending.said.date, pending.said.authorized_date or pending.said.date):
        score += 5
    return Pair(new, old, "pending", min(score, 99), evidence)


def _linked(certain: Iterable[Pair], found: Iterable[Pair]) -> list[Pair]:
    """Link the clear winners until there is none: each takes rivals away, so another pair may become clear."""
    links: list[Pair] = []
    allowed = {id(pair) for pair in certain}
    left, taken = list(found), set[int]()
    while True:
        rivals: dict[int, list[Pair]] = defaultdict(list)
        for pair in left:
            rivals[id(pair.new)].append(pair)
            rivals[id(pair.old)].append(pair)
        clear = [pair for pair in left if id(pair) in allowed and _is_clear(pair, rivals)]
        if not clear:
            return links
        for pair in clear:
            if not {id(pair.new), id(pair.old)} & taken:  # twins are clear several times over, and pair off
                links.append(pair)
                taken |= {id(pair.new), id(pair.old)}
        left = [pair for pair in left if not {id(pair.new), id(pair.old)} & taken]


def _is_clear(pair: Pair, rivals: dict[int, list[Pair]]) -> bool:
    if pair.score < LINK_MIN.get(pair.rule, 101):
        return False
    # A pair of twins of both sides says the same, so it is no rival.
    others = [one for side in (pair.new, pair.old) for one in rivals[id(side)] if _kinds(one) != _kinds(pair)]
    return all(one.score <= pair.score - MARGIN for one in others)


def _kinds(pair: Pair) -> tuple[object, ...]:
    return (pair.new.key, pair.new.said.pending, pair.old.key, pair.old.said.pending)


def _is_at_stake(pair: Pair) -> bool:
    counts_twice = not pair.old.is_gone and pair.rule != "hold"
    return counts_twice or bool(pair.old.row.user_fields) or pair.score >= LINK_MIN.get(pair.rule, 101)


def _may_be(old: Sketch, account: AccountKey) -> bool:
    """Whether an old transaction may be one that its bank tells of in this account: two live ones of it are two."""
    return old.is_gone or old.account != account


def _has_linked_items(pair: Pair, twins: Counter[Key]) -> bool:
    return twins[pair.new.key] > 1 or twins[pair.old.key] > 1


def _likeness(one: Sketch, other: Sketch) -> int:
    merchants = (one.said.merchant_entity_id, other.said.merchant_entity_id)
    # Whole numbers, rounded down: a score must not depend on the last bit of a division.
    found = int(fuzz.token_sort_ratio(one.description, other.description))
    return min(found, STRANGER_LIKENESS) if None not in merchants and merchants[0] != merchants[1] else found


def _within_tip(less: Decimal, more: Decimal) -> bool:
    return more <= less * TIP_MAX


def _evidence(new: Sketch, old: Sketch, likeness: int) -> str:
    equal = [
        name
        for name in ("date", "amount", "authorized_date", "datetime", "merchant_entity_id", "name", "pending")
        if getattr(new.said, name) is not None and getattr(new.said, name) == getattr(old.said, name)
    ]
    found = {
        "equal": equal + (["description"] if new.description == old.description else []),
        "days": new.day - old.day,
        "likeness": likeness,
        "amounts": [old.said.amount, new.said.amount],
        "ids": [old.row.transaction_id, new.row.transaction_id],
        "old_was_removed": old.is_gone,
    }
    return json.dumps(found, sort_keys=True, separators=(",", ":"))


def _order(one: Sketch) -> tuple[str, ...]:
    """Twins that differ in what `exact` does not compare are put side by side."""
    said = one.said
    details = (said.datetime, said.authorized_datetime, said.authorized_date, said.check_number, said.name)
    return (*(detail or "" for detail in details), one.row.own_id.hex())


def _unlinked(old: Iterable[Sketch], links: Iterable[Pair]) -> list[Sketch]:
    taken = {id(pair.old) for pair in links}
    return [one for one in old if id(one) not in taken]


def _without(new: Iterable[Sketch], links: Iterable[Pair], questions: Iterable[Question]) -> list[Sketch]:
    answered = {id(pair.new) for pair in links} | {id(question.new) for question in questions}
    return [one for one in new if id(one) not in answered]
