"""Rules of transaction matching: each pairs new transactions with known ones, with a score (0 to 100) and evidence.

Transactions are compared only within one account of the bank, whatever its ids, and in one currency.

exact    Equal date, amount and description. 100.
near     Equal amount, at most NEAR_DAYS_MAX days apart. Likeness of the descriptions, less 5 a day; at least PLAUSIBLE
         where the old one still counts.
pending  A pending with a posted one of up to PENDING_DAYS_MAX days later, with the same amount or a tip more. Likeness,
         less 1 a day, less 10 for a tip, 5 more where the bank authorised it on the pending one's date.
hold     The same with any other amount. Likeness, less 1 a day, less 30; at most HOLD_MAX.
amended  Both posted, at most a day apart, amounts within a tip, likeness of ALIKE_MIN or more. Likeness, less 5 a
         day, less 20.

A match needs LINK_MIN or more, to be the best for both sides, and MARGIN more than any other pair of either side.
Duplicates, equal in all that `exact` compares, cannot be distinguished and pair off, unless one has user fields.
An unmatched pair of at least PLAUSIBLE is a question for a person where something is at stake: an old transaction
that still counts, so that one purchase would count twice; its user fields; or a choice among good pairs.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from operator import attrgetter
from typing import NamedTuple

from rapidfuzz import fuzz

from projections.matching.accounts import normalised
from projections.model.unit_of_work import AccountKey, Row
from schemas.encoding import codec
from schemas.log.records import Transaction

NEAR_DAYS_MAX = 3
"""Banks differ by a weekend in the date of a posted transaction."""
PENDING_DAYS_MAX = 14
"""Longest that a transaction stays pending. Source: PLAID.md 1.3."""
DAYS_MAX = PENDING_DAYS_MAX
"""No rule compares over more days."""
TIP_MAX = Decimal("1.3")
"""A posted amount over its pending one. Tips are 10 to 25 percent; an estimate that ends lower, or higher than this,
proves too little by itself."""
LINK_MIN = {"near": 85, "pending": 80}
"""Other rules ask a person at most."""
NEVER = 101
MARGIN = 10
PLAUSIBLE = 60
HOLD_MAX = 70
ALIKE_MIN = 90
"""Likeness from which another amount may be an amendment."""
MERCHANT_LIKENESS = 90
"""At least so alike are a pending and a posted transaction of one merchant: their texts are often quite different."""
STRANGER_LIKENESS = 60
"""At most so alike are transactions of two known merchants."""

_details = attrgetter("datetime", "authorized_datetime", "authorized_date", "check_number", "name")

_COMPARED = ("date", "amount", "authorized_date", "datetime", "merchant_entity_id", "name", "pending")
"""Fields that the evidence names where they are equal."""

Key = tuple[AccountKey, int, Decimal, str, str]
"""Account, date, amount, currency and description: the fields that `exact` compares."""


class TransactionFeatures(NamedTuple):
    """Features of a transaction that the rules compare.

    `scope` is the oldest id of its account at the bank, `account` its id now. `is_gone`: the bank removed it in the
    very record that is matched.
    """

    row: Row
    payload: Transaction
    scope: AccountKey
    account: AccountKey
    day: int
    amount: Decimal
    description: str
    is_gone: bool

    @property
    def key(self) -> Key:
        """The fields that `exact` compares."""
        return (self.scope, self.day, self.amount, self.payload.currency, self.description)


class Pair(NamedTuple):
    """A new and an old transaction that may be one."""

    new: TransactionFeatures
    old: TransactionFeatures
    rule: str
    score: int
    evidence: str


class Question(NamedTuple):
    """A new transaction that may be one of the old ones of these pairs, best first."""

    new: TransactionFeatures
    pairs: list[Pair]
    reason: str


class Matches(NamedTuple):
    """Pairs that are certain enough, and questions for a person."""

    links: list[Pair]
    questions: list[Question]


def features(
    row: Row, payload: Transaction, *, account: AccountKey, scope: AccountKey, is_gone: bool = False
) -> TransactionFeatures:
    """Return the features of a row with this decoded payload."""
    return TransactionFeatures(
        row,
        payload,
        scope,
        account,
        date.fromisoformat(payload.date).toordinal(),
        Decimal(payload.amount),
        normalised(payload.original_description or payload.name),
        is_gone,
    )


def payload_of(row: Row) -> Transaction:
    """Decode the bank's last payload of a row."""
    payload: Transaction = codec.decoder(row.schema)(row.payload, 0)[0]
    return payload


def matches(new: Sequence[TransactionFeatures], old: Sequence[TransactionFeatures]) -> Matches:
    """Match new transactions with old ones. The order of either side makes no difference."""
    accounts = {(item.scope, item.account) for item in new}
    # Others are no duplicates either: a batch has as many of an Item's own live rows as happen to be named in it.
    old = [item for item in old if any(item.scope == scope and _may_be(item, account) for scope, account in accounts)]
    new, old = sorted(new, key=_order), sorted(old, key=_order)
    counts = Counter(item.key for item in new) | Counter(item.key for item in old)
    links: list[Pair] = []
    questions: list[Question] = []
    # Removed rows first: an Item's own transaction is nearer than one of another Item.
    for is_gone in (True, False):
        candidates = [item for item in _unlinked(old, links) if item.is_gone == is_gone]
        _match_exact(_unanswered(new, links, questions), candidates, links, questions)
    pairs = _near_pairs(_unanswered(new, links, questions), _unlinked(old, links))
    edited = {pair.old.key for pair in pairs if pair.old.row.user_fields}
    certain = [
        pair for pair in pairs if pair.old.key not in edited or max(counts[pair.new.key], counts[pair.old.key]) <= 1
    ]
    links += _clear_links(certain, pairs)
    taken = {id(side) for pair in links for side in (pair.new, pair.old)}
    rest = defaultdict(list)
    for pair in pairs:
        if not {id(pair.new), id(pair.old)} & taken and pair.score >= PLAUSIBLE:
            rest[id(pair.new)].append(pair)
    for rivals in rest.values():
        if any(map(_is_at_stake, rivals)):
            rivals.sort(key=lambda pair: (-pair.score, pair.old.row.own_id))
            questions.append(Question(rivals[0].new, rivals, "likely"))
    return Matches(links, questions)


def _match_exact(
    new: Iterable[TransactionFeatures], old: Iterable[TransactionFeatures], links: list[Pair], questions: list[Question]
) -> None:
    waiting: dict[tuple[Key, AccountKey], list[TransactionFeatures]] = defaultdict(list)
    for item in new:
        waiting[item.key, item.account].append(item)
    known: dict[Key, list[TransactionFeatures]] = defaultdict(list)
    for item in old:
        known[item.key].append(item)
    for (key, account), arrived in waiting.items():
        alike = [item for item in known.get(key, ()) if _may_be(item, account)]
        if len(alike) * len(arrived) > 1 and any(item.row.user_fields for item in alike):
            questions += [Question(item, [_exact_pair(item, other) for other in alike], "twins") for item in arrived]
        else:
            for item, other in zip(arrived, alike, strict=False):
                known[key].remove(other)
                links.append(_exact_pair(item, other))


def _exact_pair(new: TransactionFeatures, old: TransactionFeatures) -> Pair:
    return Pair(new, old, "exact", 100, _evidence(new, old, 100))


def _near_pairs(new: Iterable[TransactionFeatures], old: Iterable[TransactionFeatures]) -> list[Pair]:
    by_day: dict[tuple[AccountKey, str, int], list[TransactionFeatures]] = defaultdict(list)
    for item in old:
        by_day[item.scope, item.payload.currency, item.day].append(item)
    rivals = (
        (item, other)
        for item in (new if by_day else ())
        for day in range(item.day - DAYS_MAX, item.day + DAYS_MAX + 1)
        for other in by_day.get((item.scope, item.payload.currency, day), ())
        if _may_be(other, item.account)
    )
    return [pair for item, other in rivals if (pair := _pair(item, other)) is not None]


def _pair(new: TransactionFeatures, old: TransactionFeatures) -> Pair | None:
    days = abs(new.day - old.day)
    if new.payload.pending != old.payload.pending:
        return _settled(new, old)
    if new.amount == old.amount and days <= NEAR_DAYS_MAX:
        likeness = _likeness(new, old)
        least = 0 if old.is_gone else PLAUSIBLE
        return Pair(new, old, "near", max(likeness - 5 * days, least), _evidence(new, old, likeness))
    if new.payload.pending or days > 1 or not _within_tip(*sorted((abs(new.amount), abs(old.amount)))):
        return None
    likeness = _likeness(new, old)
    if likeness < ALIKE_MIN or (new.amount < 0) != (old.amount < 0):
        return None
    return Pair(new, old, "amended", likeness - 5 * days - 20, _evidence(new, old, likeness))


def _settled(new: TransactionFeatures, old: TransactionFeatures) -> Pair | None:
    """Pair a pending and a posted transaction, whichever of the two came first."""
    pending, posted = (old, new) if old.payload.pending else (new, old)
    days = posted.day - pending.day
    if not -1 <= days <= PENDING_DAYS_MAX or (new.amount < 0) != (old.amount < 0):
        return None
    likeness = _likeness(new, old)
    if new.payload.merchant_entity_id is not None and new.payload.merchant_entity_id == old.payload.merchant_entity_id:
        likeness = max(likeness, MERCHANT_LIKENESS)
    evidence = _evidence(new, old, likeness)
    score = likeness - abs(days)
    is_tip = 0 < pending.amount < posted.amount and _within_tip(pending.amount, posted.amount)
    if pending.amount != posted.amount and not is_tip:
        return Pair(new, old, "hold", min(score - 30, HOLD_MAX), evidence)
    if is_tip:
        score -= 10
    before = pending.payload
    if posted.payload.authorized_date in (before.date, before.authorized_date or before.date):
        score += 5
    return Pair(new, old, "pending", min(score, 99), evidence)


def _clear_links(certain: Iterable[Pair], pairs: Iterable[Pair]) -> list[Pair]:
    """Link the clear winners until there is none: each takes rivals away, so another pair may become clear."""
    links: list[Pair] = []
    allowed = {id(pair) for pair in certain}
    left, taken = list(pairs), set[int]()
    while True:
        rivals: dict[int, list[Pair]] = defaultdict(list)
        for pair in left:
            rivals[id(pair.new)].append(pair)
            rivals[id(pair.old)].append(pair)
        clear = [pair for pair in left if id(pair) in allowed and _is_clear(pair, rivals)]
        if not clear:
            return links
        for pair in clear:
            if not {id(pair.new), id(pair.old)} & taken:  # duplicates are clear several times over, and pair off
                links.append(pair)
                taken |= {id(pair.new), id(pair.old)}
        left = [pair for pair in left if not {id(pair.new), id(pair.old)} & taken]


def _is_clear(pair: Pair, rivals: dict[int, list[Pair]]) -> bool:
    if pair.score < LINK_MIN.get(pair.rule, NEVER):
        return False
    # A pair of duplicates of both sides has the same meaning, so it is no rival.
    sides = [rival for side in (pair.new, pair.old) for rival in rivals[id(side)]]
    return all(rival.score <= pair.score - MARGIN for rival in sides if _kinds(rival) != _kinds(pair))


def _kinds(pair: Pair) -> tuple[object, ...]:
    return (pair.new.key, pair.new.payload.pending, pair.old.key, pair.old.payload.pending)


def _is_at_stake(pair: Pair) -> bool:
    counts_twice = not pair.old.is_gone and pair.rule != "hold"
    return counts_twice or bool(pair.old.row.user_fields) or pair.score >= LINK_MIN.get(pair.rule, NEVER)


def _may_be(old: TransactionFeatures, account: AccountKey) -> bool:
    # Two live transactions under one account id are two.
    return old.is_gone or old.account != account


def _likeness(first: TransactionFeatures, second: TransactionFeatures) -> int:
    merchants = (first.payload.merchant_entity_id, second.payload.merchant_entity_id)
    # Whole numbers, rounded down: a score must not depend on the last bit of a division.
    ratio = int(fuzz.token_sort_ratio(first.description, second.description))
    return min(ratio, STRANGER_LIKENESS) if None not in merchants and merchants[0] != merchants[1] else ratio


def _within_tip(less: Decimal, more: Decimal) -> bool:
    return more <= less * TIP_MAX


def _evidence(new: TransactionFeatures, old: TransactionFeatures, likeness: int) -> str:
    fields = [(name, getattr(new.payload, name), getattr(old.payload, name)) for name in _COMPARED]
    equal = [name for name, after, before in fields if after is not None and after == before]
    evidence = {
        "equal": equal + (["description"] if new.description == old.description else []),
        "days": new.day - old.day,
        "likeness": likeness,
        "amounts": [old.payload.amount, new.payload.amount],
        "ids": [old.row.transaction_id, new.row.transaction_id],
        "old_was_removed": old.is_gone,
    }
    return json.dumps(evidence, sort_keys=True, separators=(",", ":"))


def _order(item: TransactionFeatures) -> tuple[str, ...]:
    """Sort duplicates that differ in fields that `exact` does not compare beside each other."""
    return (*(detail or "" for detail in _details(item.payload)), item.row.own_id.hex())


def _unlinked(old: Iterable[TransactionFeatures], links: Iterable[Pair]) -> list[TransactionFeatures]:
    taken = {id(pair.old) for pair in links}
    return [item for item in old if id(item) not in taken]


def _unanswered(
    new: Iterable[TransactionFeatures], links: Iterable[Pair], questions: Iterable[Question]
) -> list[TransactionFeatures]:
    answered = {id(pair.new) for pair in links} | {id(question.new) for question in questions}
    return [item for item in new if id(item) not in answered]
