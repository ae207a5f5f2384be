"""Who a transaction is: applies the rules of identity_match to the working set, and what people decide. Pure.

Where a purchase is told under several ids, one row has it: that of the youngest linked Item. The other ids lead to it
(`ItemRow.moved`), and what is said about them is passed over. Where nobody can be sure, the younger row is held.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from projections.decode.changeset import Changeset, FullResync
from projections.fold import full_resync
from projections.ledger import override_rules
from projections.ledger.postings import posted
from projections.matching import accounts as accounts_match
from projections.matching import rules
from projections.matching.accounts import walk
from projections.matching.rules import Pair, Question, Sketch, words_of
from projections.model.book import NOTHING
from projections.model.change_tracker import Touched, remember
from projections.model.record_context import RecordContext
from projections.model.transaction_payload import TransactionPayload
from projections.model.unit_of_work import MERGED_PREFIX, AccountKey, ItemRow, Review, Row, TransactionMatch, UnitOfWork
from schemas import events
from schemas.ids import review_id
from schemas.log.records import Decision, Removal

PASSED_OVER = "transaction.passed_over"
"""Count of what an Item said about transactions that a younger Item tells of."""

DECISIONS = frozenset({events.APPROVE_REVIEW, events.REJECT_REVIEW})

LEFT = "left"
"""Rule of a link that leads nowhere any more: the Item took back what a younger one still tells of."""

OPEN, APPROVED, REJECTED, SETTLED = "open", "approved", "rejected", "settled"
"""States of a review. Settled: it has become void, because the bank took back one side of it or said more."""


_STORED = (None, True)
"""In place of what is touched: a row that the record has not touched was there before it."""


class _Because(NamedTuple):
    """Why an id is a known transaction."""

    rule: str
    score: int
    evidence: str


def heard(
    working: UnitOfWork,
    item: ItemRow,
    said: Sequence[TransactionPayload | Removal],
    touched: Touched,
    place: RecordContext,
) -> list[TransactionPayload | Removal]:
    """What is not passed over, of what an Item says about transactions that live on elsewhere.

    Where the Item that tells of one is unlinked, this one takes it back.
    """
    rows = _by_own_id(working, place.user)
    kept = []
    for one in said:
        if (
            type(one) is TransactionPayload
            and one.transaction_id not in item.moved
            and one.pending_transaction_id in item.moved
        ):
            pending = one.pending_transaction_id
            goes_on = item.moved[one.transaction_id] = item.moved.pop(pending)
            _link(working, item, pending, goes_on, _Because(LEFT, 100, "{}"), place)
            _link(working, item, one.transaction_id, goes_on, _Because("plaid", 100, "{}"), place)
    for one in said:
        own = item.moved.get(one.transaction_id)
        row = None if own is None else rows.get(own)
        if row is None or row.item_id == item.item_id:
            kept.append(one)
        elif type(one) is not TransactionPayload and working.items[row.item_id].unlinked_at is None:
            # From now on another id of this Item may be that transaction.
            del item.moved[one.transaction_id]
            _link(working, item, one.transaction_id, row.own_id, _Because(LEFT, 100, "{}"), place)
        elif working.items[row.item_id].unlinked_at is not None:
            remember(row, touched)
            _move(working, row, item, one.transaction_id, _Because("taken_back", 100, "{}"), place)
            kept.append(one)
    return kept


def resolve(working: UnitOfWork, item: ItemRow, touched: Touched, place: RecordContext, said: Changeset) -> int:
    """Find what the record's new transactions are, and do what it decides about reviews.

    It comes behind all that the record says of transactions, and before the difference is settled. Gives the number of
    decisions without effect.
    """
    idle = sum(not _decide(working, touched, place, one) for one in said.decisions if one.decision in DECISIONS)
    if said.balances:
        accounts_match.join(working, item, said.balances)
    if said.full_resync is not None and item.moved:
        _forget(working, item, said.full_resync, {one.transaction_id for one in said.transactions}, place)
    # Before and after: what is released may be what arrives, and what arrives may be what another one was held for.
    _settle_reviews(working, touched, place)
    if said.transactions and _may_match(item, said):
        _match(working, item, touched, place)
        _settle_reviews(working, touched, place)
    return idle


def _forget(working: UnitOfWork, item: ItemRow, whole: FullResync, named: set[str], place: RecordContext) -> None:
    """Let what lives on elsewhere, and a whole history does not name, be as good as taken back by its Item.

    From now on another id of the Item may be that transaction.
    """
    families, rows = _Families(working), _by_own_id(working, place.user)
    for name in sorted(item.moved.keys() - named):
        row = rows.get(item.moved[name])
        if row is None or row.item_id == item.item_id:
            continue
        accounts = {account_id for item_id, account_id in families.of(_account(row)) if item_id == item.item_id}
        if any(full_resync.covers(whole, row, account_id) for account_id in accounts):
            del item.moved[name]
            _link(working, item, name, row.own_id, _Because(LEFT, 100, "{}"), place)


def candidate_ids(review: Review) -> list[bytes]:
    """The own ids that a review is about, beside the one that it holds."""
    return [bytes.fromhex(one["own_id"]) for one in json.loads(review.candidates)]


def canonical_candidates(stored: str) -> str:
    """Candidates as the fold has them, from any JSON text of the same content: Postgres writes its own."""
    return _dumped(json.loads(stored))


def _may_match(item: ItemRow, said: Changeset) -> bool:
    """Whether anything is there that a new transaction could be: nearly always nothing is, and costs nothing."""
    return (
        item.has_linked_items
        or said.full_resync is not None
        or events.TRANSACTION_REMOVED in said.counts
        or any(account.continues or account.continued_by for account in item.accounts.values())
    )


def _match(working: UnitOfWork, item: ItemRow, touched: Touched, place: RecordContext) -> None:
    # A version of zero: nobody has seen it yet, so it may still be another one.
    arrived = [row for row, _ in touched.values() if not row.version and row.is_shown and row.item_id == item.item_id]
    if not arrived:
        return
    families = _Families(working)
    gone = [
        _sketch(families, row, is_gone=True)
        for row, before in touched.values()
        if before is not None and before.is_shown and row.removed_at is not None and row.item_id == item.item_id
    ]
    _find(working, item, touched, place, arrived, gone)


def _find(
    working: UnitOfWork,
    item: ItemRow,
    touched: Touched,
    place: RecordContext,
    arrived: Sequence[Row],
    gone: Sequence[Sketch],
) -> None:
    """Let transactions of an Item that nobody has seen yet be what they are: known ones, questions, or their own."""
    families = _Families(working)
    new = [_sketch(families, row) for row in arrived]
    mine = {row.own_id for row in arrived}
    spoken_of = set(item.moved.values()) | mine
    old = list(gone)
    for key in {key for account in {one.account for one in new} for key in families.of(account)}:
        old += [one for one in families.shown(key) if one.row.own_id not in spoken_of and one.account == key]
    found = rules.matches(new, old)
    for pair in found.links:
        arrival, known = pair.new, pair.old
        if touched.get(known.row.own_id, _STORED)[1] is None:  # both are new to readers: the one that waited goes on
            arrival, known = known, arrival
        ahead = families.is_ahead(known.account, arrival.account)
        _merge(working, touched, place, arrival.row, known.row, _because(pair), ahead=ahead)
    for question in found.questions:
        _ask(working, question, place)


def _merge(
    working: UnitOfWork, touched: Touched, place: RecordContext, new: Row, old: Row, because: _Because, *, ahead: bool
) -> None:
    """Let the old row go on as what the new one is. `ahead`: a younger Item tells of it already, so its payload stay."""
    item, name = working.items[new.item_id], new.transaction_id
    remember(old, touched)
    if old.missing_since_offset is not None:
        full_resync.unmark(working, working.items[old.item_id], old)
    old.user_fields = override_rules.merge(old.user_fields, new.user_fields)
    said = (new.payload, new.schema, new.columns)
    _end(item, touched, new, place)
    if ahead:
        item.moved[name] = old.own_id
        item.own_ids.add(old.own_id)
        _link(working, item, name, old.own_id, because, place)
    else:
        _move(working, old, item, name, because, place)
        old.payload, old.schema, old.columns = said
        old.removed_at = None
    old.postings = posted(working.book, old)


def _end(item: ItemRow, touched: Touched, row: Row, place: RecordContext) -> None:
    """Let a row end that turned out to be another one: without trace, or removed where it is stored already."""
    item.by_id.pop(row.transaction_id)
    entry = touched.get(row.own_id)
    if entry is not None and entry[1] is None:
        del touched[row.own_id]
        item.own_ids.discard(row.own_id)
        return
    remember(row, touched)
    row.transaction_id, row.own_id_inherited = MERGED_PREFIX + row.own_id.hex(), False
    row.removed_at, row.review, row.postings = place.known_at, None, NOTHING
    item.add(row)


def _move(working: UnitOfWork, row: Row, item: ItemRow, name: str, because: _Because, place: RecordContext) -> None:
    """Let a row live on in an Item under its name there. In the Item that it leaves, the id that it had leads to it."""
    holder = working.items[row.item_id]
    if holder.by_id.get(row.transaction_id) is row:
        del holder.by_id[row.transaction_id]
    if holder is not item:
        # Its own id stays taken there: it may be made of an id of that Item.
        holder.moved[row.transaction_id] = row.own_id
        _link(working, holder, row.transaction_id, row.own_id, because, place)
        item.transaction_rows += 1
        working.changed_items[item.item_id] = item
    for other in [key for key, own in item.moved.items() if own == row.own_id]:
        del item.moved[other]
    row.item_id, row.transaction_id, row.own_id_inherited = item.item_id, name, True
    item.add(row)
    _link(working, item, name, row.own_id, because, place)


def _link(working: UnitOfWork, item: ItemRow, name: str, own: bytes, because: _Because, place: RecordContext) -> None:
    working.matches.append(
        TransactionMatch(
            item.item_id,
            name,
            own,
            place.user,
            because.rule,
            because.score,
            because.evidence,
            place.offset,
            place.known_at,
        )
    )


def _ask(working: UnitOfWork, question: Question, place: RecordContext) -> None:
    held = question.new.row
    candidates = [
        {
            "own_id": pair.old.row.own_id.hex(),
            "rule": pair.rule,
            "score": pair.score,
            "evidence": json.loads(pair.evidence),
        }
        for pair in question.pairs
    ]
    review = Review(
        review_id(place.changeset_id, held.own_id),
        place.user,
        held.item_id,
        held.own_id,
        _dumped(candidates),
        question.reason,
        place.offset,
        place.known_at,
    )
    held.review, held.postings = review.id, NOTHING
    working.reviews[review.id] = working.changed_reviews[review.id] = review


def _decide(working: UnitOfWork, touched: Touched, place: RecordContext, decision: Decision) -> bool:
    """Do what a person decided about a review; False where it is not open, or the decision names no candidate of it."""
    review = next((one for one in _open(working, place.user) if one.id.hex() == decision.subject), None)
    if review is None:
        return False
    rows = _by_own_id(working, place.user)
    held = rows[review.own_id]
    if decision.decision == events.REJECT_REVIEW:
        _release(working, touched, held)
        _close(working, review, REJECTED, place)
        return True
    available = _available(working, review, rows)
    chosen = _chosen(decision) or (next(iter(available)) if len(available) == 1 else None)
    if chosen not in available:
        return False
    candidate, because = available[chosen]
    ahead = _Families(working).is_ahead(_account(candidate), _account(held))
    _merge(working, touched, place, held, candidate, because, ahead=ahead)
    review.chosen = candidate.own_id
    _close(working, review, APPROVED, place)
    return True


def _settle_reviews(working: UnitOfWork, touched: Touched, place: RecordContext) -> None:
    """End the reviews that have become void: what is held is gone, or nothing is left that it could be.

    What is released may be something else that is known by now; that in turn may be what another one was held for.
    """
    while void := _void(working, place.user):
        review, held = void
        _close(working, review, SETTLED, place)
        _release(working, touched, held)
        if held.is_shown:
            _find(working, working.items[held.item_id], touched, place, [held], [])


def _void(working: UnitOfWork, user: int) -> tuple[Review, Row] | None:
    reviews = _open(working, user)
    rows = _by_own_id(working, user) if reviews else {}
    for review in reviews:
        held = rows.get(review.own_id)
        if held is None or held.review != review.id:
            continue
        if held.removed_at is not None or not _available(working, review, rows):
            return review, held
    return None


def _release(working: UnitOfWork, touched: Touched, held: Row) -> None:
    remember(held, touched)
    held.review = None
    held.postings = posted(working.book, held)


def _close(working: UnitOfWork, review: Review, state: str, place: RecordContext) -> None:
    review.state, review.decided, review.decided_at = state, place.offset, place.known_at
    working.changed_reviews[review.id] = review


def _open(working: UnitOfWork, user: int) -> list[Review]:
    found = [review for review in working.reviews.values() if review.user == user and review.state == OPEN]
    return sorted(found, key=lambda review: review.id)


def _available(working: UnitOfWork, review: Review, rows: dict[bytes, Row]) -> dict[str, tuple[Row, _Because]]:
    """The candidates that the held row may still be, by own id as text."""
    held = rows[review.own_id]
    spoken_of = set(working.items[held.item_id].moved.values())
    found = {}
    for one in json.loads(review.candidates):
        row = rows.get(bytes.fromhex(one["own_id"]))
        if row is None or row.review is not None or row.is_merged:
            continue
        is_gone = row.removed_at is not None
        lives_apart = row.own_id not in spoken_of and _account(row) != _account(held)
        if is_gone if one["evidence"]["old_was_removed"] else not is_gone and lives_apart:
            found[one["own_id"]] = (row, _Because("review", one["score"], _dumped(one["evidence"])))
    return found


def _chosen(decision: Decision) -> str | None:
    """The candidate that a decision names, "" where it names none that can be one; None where it leaves that open."""
    if decision.detail_json is None:
        return None
    try:
        named = json.loads(decision.detail_json)
    except (ValueError, RecursionError):
        return ""
    own = named.get("own_id") if isinstance(named, dict) else ""
    return own if own is None or isinstance(own, str) else ""


class _Families:
    """Accounts that are one at the bank, oldest id first, and what is shown in them."""

    def __init__(self, working: UnitOfWork) -> None:
        self._working = working
        self._shown: dict[str, list[Sketch]] = {}
        self._families: dict[AccountKey, tuple[AccountKey, ...]] = {}

    def of(self, key: AccountKey) -> tuple[AccountKey, ...]:
        """All ids of an account."""
        found = self._families.get(key)
        if found is None:
            older, younger = (list(walk(self._working, key, way)) for way in ("continues", "continued_by"))
            found = self._families[key] = (*reversed(older), key, *younger)
        return found

    def is_ahead(self, one: AccountKey, other: AccountKey) -> bool:
        """Whether another Item, younger than the other one and linked, tells of an account."""
        family = self.of(other)
        if one not in family or one[0] == other[0] or self._working.items[one[0]].unlinked_at is not None:
            return False
        return family.index(one) > family.index(other)

    def shown(self, key: AccountKey) -> Iterator[Sketch]:
        """What is shown of the Item that has an account."""
        holder = self._working.items.get(key[0])
        if holder is not None and key[0] not in self._shown:
            self._shown[key[0]] = [_sketch(self, row) for row in holder.by_id.values() if row.is_shown]
        yield from self._shown.get(key[0], ())


def _sketch(families: _Families, row: Row, *, is_gone: bool = False) -> Sketch:
    said = words_of(row)
    scope = families.of((row.item_id, said.account_id))[0]
    return rules.sketch(row, said, scope=scope, is_gone=is_gone)


def _account(row: Row) -> AccountKey:
    return (row.item_id, words_of(row).account_id)


def _because(pair: Pair) -> _Because:
    return _Because(pair.rule, pair.score, pair.evidence)


def _by_own_id(working: UnitOfWork, user: int) -> dict[bytes, Row]:
    rows: Iterable[Row] = (row for item in working.items.values() if item.user == user for row in item.by_id.values())
    return {row.own_id: row for row in rows}


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
