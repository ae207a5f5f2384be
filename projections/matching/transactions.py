"""Transaction matching: apply the rules to the unit of work, and the decisions of people about reviews.

Where a purchase is reported under several ids, one row has it: that of the youngest linked Item. The other ids lead to
it (`ItemRow.moved`), and their reports are skipped. Where no rule is sure, a review asks a person. Until then one row
counts: the review withholds the younger one as long as another candidate counts.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any, NamedTuple

from projections.decode import transaction
from projections.decode.changeset import Changeset, FullResync
from projections.ledger import user_field_values
from projections.ledger.postings import posted
from projections.matching import rules
from projections.matching.accounts import link_new_accounts, walk
from projections.matching.rules import Question, TransactionFeatures, payload_of
from projections.model.book import NOTHING
from projections.model.record_context import RecordContext
from projections.model.transaction_payload import TransactionPayload
from projections.model.unit_of_work import (
    MERGED_PREFIX,
    AccountKey,
    ItemRow,
    Review,
    Row,
    Touched,
    TransactionMatch,
    UnitOfWork,
    track,
)
from schemas import events
from schemas.ids import review_id
from schemas.log.records import Decision, Removal

PASSED_OVER = "transaction.passed_over"
"""Count of an Item's reports about transactions that a younger Item reports too."""

DECISIONS = frozenset({events.APPROVE_REVIEW, events.REJECT_REVIEW})

LEFT = "left"
"""Rule of a match that leads nowhere any more: the Item removed a transaction that a younger Item still reports."""

OPEN, APPROVED, REJECTED, SETTLED = "open", "approved", "rejected", "settled"
"""States of a review. Settled: it became void, because the bank removed one side of it or reported more."""


class _Match(NamedTuple):
    """Reason why an id is a known transaction."""

    rule: str
    score: int = 100
    evidence: str = "{}"


def filter_moved(
    work: UnitOfWork,
    item: ItemRow,
    transactions: Sequence[TransactionPayload | Removal],
    touched: Touched,
    context: RecordContext,
) -> list[TransactionPayload | Removal]:
    """Return an Item's reports without those about transactions that go on in another Item.

    Where that other Item is unlinked, this one takes the transaction back.
    """
    resolver = _Resolver(work, touched, context)
    rows = work.rows_by_own_id(context.user)
    for payload in transactions:
        if (
            type(payload) is TransactionPayload
            and payload.transaction_id not in item.moved
            and payload.pending_transaction_id in item.moved
            and _is_continued(rows.get(item.moved[payload.pending_transaction_id]), payload)
        ):
            pending = payload.pending_transaction_id
            own_id = item.moved[payload.transaction_id] = item.moved.pop(pending)
            resolver.add_match(item, pending, own_id, _Match(LEFT))
            resolver.add_match(item, payload.transaction_id, own_id, _Match("plaid"))
    remaining = []
    for payload in transactions:
        row = rows.get(item.moved.get(payload.transaction_id, b""))
        if row is None or row.item_id == item.item_id:
            remaining.append(payload)
        elif work.items[row.item_id].unlinked_at is not None:
            track(row, touched)
            resolver.move(row, item, payload.transaction_id, _Match("taken_back"))
            remaining.append(payload)
        elif type(payload) is not TransactionPayload:
            # From now on another id of this Item may be that transaction.
            del item.moved[payload.transaction_id]
            resolver.add_match(item, payload.transaction_id, row.own_id, _Match(LEFT))
    return remaining


def _is_continued(row: Row | None, payload: TransactionPayload) -> bool:
    """Return whether another Item's row is what this report posts. Where that Item posted it before, amounts agree."""
    if row is None:
        return True
    known = transaction.decode(row.schema, row.payload)
    return known.is_pending or (known.amount, known.currency) == (payload.amount, payload.currency)


def resolve(work: UnitOfWork, item: ItemRow, touched: Touched, context: RecordContext, changeset: Changeset) -> int:
    """Match the record's new transactions and apply its decisions about reviews.

    It runs after all reports of the record are applied, and before the difference is settled. Returns the number of
    decisions without effect.
    """
    resolver = _Resolver(work, touched, context)
    decisions = [decision for decision in changeset.decisions if decision.decision in DECISIONS]
    idle = sum(not resolver.decide(decision) for decision in decisions)
    if changeset.balances:
        link_new_accounts(work, item, changeset.balances)
    if changeset.full_resync is not None and item.moved:
        named = {payload.transaction_id for payload in changeset.transactions}
        resolver.forget(item, changeset.full_resync, named)
    # Before and after: a released row may match an arriving one, and an arriving one may be a review's candidate.
    resolver.settle_reviews()
    if changeset.transactions and (
        # Nearly always nothing is there that a new transaction could be, and this costs nothing.
        changeset.full_resync is not None or events.TRANSACTION_REMOVED in changeset.counts or item.has_linked_accounts
    ):
        resolver.match_arrived(item)
        resolver.settle_reviews()
    return idle


def candidate_ids(review: Review) -> list[bytes]:
    """Return the own ids of a review's candidates."""
    return [bytes.fromhex(candidate["own_id"]) for candidate in json.loads(review.candidates)]


def canonical_candidates(stored: str) -> str:
    """Return candidates as the fold has them, from any JSON text of the same content: Postgres writes its own."""
    return _dumped(json.loads(stored))


class _Resolver:
    """Changes the rows, matches and reviews of the Items of one user, for one record."""

    def __init__(self, work: UnitOfWork, touched: Touched, context: RecordContext) -> None:
        self._work = work
        self._touched = touched
        self._context = context

    def forget(self, item: ItemRow, full_resync: FullResync, named: set[str]) -> None:
        """Drop the Item's ids of transactions in other Items that a full resync does not name.

        From now on another id of the Item may be that transaction.
        """
        families, rows = _AccountFamilies(self._work), self._work.rows_by_own_id(self._context.user)
        for transaction_id in sorted(item.moved.keys() - named):
            row = rows.get(item.moved[transaction_id])
            if row is None or row.item_id == item.item_id:
                continue
            payload = payload_of(row)
            ids = [key[1] for key in families.of((row.item_id, payload.account_id)) if key[0] == item.item_id]
            if any(full_resync.covers(account_id, date.fromisoformat(payload.date)) for account_id in ids):
                del item.moved[transaction_id]
                self.add_match(item, transaction_id, row.own_id, _Match(LEFT))

    def match_arrived(self, item: ItemRow) -> None:
        """Match the Item's transactions that arrived with this record."""
        touched = self._touched.values()
        # A version of zero: no reader saw it yet, so it may still be another one.
        arrived = [row for row, _ in touched if not row.version and row.is_shown and row.item_id == item.item_id]
        if not arrived:
            return
        families = _AccountFamilies(self._work)
        gone = [
            # Its account was in the Item that had it: this Item takes back what an unlinked one had, to remove it.
            families.features(row, item_id=before.item_id, is_gone=True)
            for row, before in touched
            if before is not None and before.is_shown and row.removed_at is not None and row.item_id == item.item_id
        ]
        self._match(item, arrived, gone)

    def _match(self, item: ItemRow, arrived: Sequence[Row], gone: Sequence[TransactionFeatures]) -> None:
        """Merge unseen transactions of an Item with known ones, or open a review of them."""
        families = _AccountFamilies(self._work)
        new = [families.features(row) for row in arrived]
        reported = set(item.moved.values()) | {row.own_id for row in arrived}
        old = list(gone)
        for key in {key for account in {features.account for features in new} for key in families.of(account)}:
            old += [known for known in families.shown(key) if known.row.own_id not in reported and known.account == key]
        matches = rules.matches(new, old)
        for pair in matches.links:
            arrival, known = pair.new, pair.old
            touched = self._touched.get(known.row.own_id)
            if touched is not None and touched[1] is None:  # both are new to readers: the one that waited goes on
                arrival, known = known, arrival
            ahead = families.is_ahead(known.account, arrival.account)
            self._merge(arrival.row, known.row, _Match(pair.rule, pair.score, pair.evidence), ahead=ahead)
        for question in matches.questions:
            self._ask(question)

    def _merge(self, new: Row, old: Row, match: _Match, *, ahead: bool) -> None:
        """Let the old row go on as the new one. `ahead`: a younger Item reports it already, so its payload stays."""
        item, transaction_id = self._work.items[new.item_id], new.transaction_id
        track(old, self._touched)
        if old.missing_since_offset is not None:
            self._work.clear_missing(self._work.items[old.item_id], old)
        old.user_fields = user_field_values.merge(old.user_fields, new.user_fields)
        payload = (new.payload, new.schema, new.columns)
        self._end(item, new)
        if ahead:
            item.moved[transaction_id] = old.own_id
            item.own_ids.add(old.own_id)
            self.add_match(item, transaction_id, old.own_id, match)
        else:
            self.move(old, item, transaction_id, match)
            old.payload, old.schema, old.columns = payload
            old.removed_at = None
        old.postings = posted(self._work.book, old)

    def _end(self, item: ItemRow, row: Row) -> None:
        """End a row that was merged into another one: without trace, or removed where it is stored already."""
        item.by_id.pop(row.transaction_id)
        entry = self._touched.get(row.own_id)
        if entry is not None and entry[1] is None:
            del self._touched[row.own_id]
            item.own_ids.discard(row.own_id)
            return
        track(row, self._touched)
        row.transaction_id, row.own_id_inherited = MERGED_PREFIX + row.own_id.hex(), False
        row.removed_at, row.review, row.postings = self._context.known_at, None, NOTHING
        item.add(row)

    def move(self, row: Row, item: ItemRow, transaction_id: str, match: _Match) -> None:
        """Move a row to an Item under its id there. In the Item that it leaves, its former id leads to it."""
        holder = self._work.items[row.item_id]
        if holder.by_id.get(row.transaction_id) is row:
            del holder.by_id[row.transaction_id]
        if holder is not item:
            # Its own id stays taken there: it may be made of an id of that Item.
            holder.moved[row.transaction_id] = row.own_id
            self.add_match(holder, row.transaction_id, row.own_id, match)
            item.transaction_rows += 1
            self._work.changed_items[item.item_id] = item
        for former in [former for former, own_id in item.moved.items() if own_id == row.own_id]:
            del item.moved[former]
        row.item_id, row.transaction_id, row.own_id_inherited = item.item_id, transaction_id, True
        item.add(row)
        self.add_match(item, transaction_id, row.own_id, match)

    def add_match(self, item: ItemRow, transaction_id: str, own_id: bytes, match: _Match) -> None:
        """Record that an id of an Item is a known transaction."""
        context = self._context
        match_values = (item.item_id, transaction_id, own_id, context.user, *match)
        self._work.matches.append(TransactionMatch(*match_values, context.offset, context.known_at))

    def _ask(self, question: Question) -> None:
        row, context = question.new.row, self._context
        candidates = [
            {"own_id": known.row.own_id.hex(), "rule": rule, "score": score, "evidence": json.loads(evidence)}
            for _, known, rule, score, evidence in question.pairs
        ]
        subject = (review_id(context.changeset_id, row.own_id), context.user, row.item_id, row.own_id)
        review = Review(*subject, _dumped(candidates), question.reason, context.offset, context.known_at)
        # Where no candidate counts, settle_reviews releases the row again.
        row.review, row.postings = review.id, NOTHING
        self._work.reviews[review.id] = self._work.changed_reviews[review.id] = review

    def decide(self, decision: Decision) -> bool:
        """Apply a decision about a review; False where it is not open, or the decision names no candidate of it."""
        review = next((review for review in self._open_reviews() if review.id.hex() == decision.subject), None)
        if review is None:
            return False
        rows = self._work.rows_by_own_id(self._context.user)
        row = rows[review.own_id]
        if decision.decision == events.REJECT_REVIEW:
            self._release(row)
            self._close(review, REJECTED)
            return True
        available = self._available(review, rows)
        chosen = _chosen(decision) or (next(iter(available)) if len(available) == 1 else None)
        if chosen not in available:
            return False
        candidate, match = available[chosen]
        ahead = _AccountFamilies(self._work).is_ahead(_account(candidate), _account(row))
        self._merge(row, candidate, match, ahead=ahead)
        review.chosen = candidate.own_id
        self._close(review, APPROVED)
        return True

    def settle_reviews(self) -> None:
        """Close the reviews that became void: their row is gone, or no candidate is left; release what counts nowhere.

        A released row may match one that is known by now; that in turn may be the candidate of another review.
        """
        while self._settle_one():
            pass

    def _settle_one(self) -> bool:
        reviews = self._open_reviews()
        rows = self._work.rows_by_own_id(self._context.user) if reviews else {}
        for review in reviews:
            row = rows.get(review.own_id)
            if row is None:
                continue
            candidates = [] if row.removed_at is not None else self._available(review, rows).values()
            is_withheld = row.review == review.id
            if candidates and (not is_withheld or any(known.removed_at is None for known, _ in candidates)):
                continue
            if not candidates:
                self._close(review, SETTLED)
            if is_withheld:
                self._release(row)
            if is_withheld and not candidates and row.is_shown:
                self._match(self._work.items[row.item_id], [row], [])
            return True
        return False

    def _release(self, row: Row) -> None:
        track(row, self._touched)
        row.review = None
        row.postings = posted(self._work.book, row)

    def _close(self, review: Review, state: str) -> None:
        review.state, review.decided, review.decided_at = state, self._context.offset, self._context.known_at
        self._work.changed_reviews[review.id] = review

    def _open_reviews(self) -> list[Review]:
        user, reviews = self._context.user, self._work.reviews.values()
        return sorted(
            (review for review in reviews if review.user == user and review.state == OPEN), key=lambda review: review.id
        )

    def _available(self, review: Review, rows: dict[bytes, Row]) -> dict[str, tuple[Row, _Match]]:
        """Return the candidates that the withheld row may still be, by own id as text."""
        withheld = rows[review.own_id]
        reported = set(self._work.items[withheld.item_id].moved.values())
        available = {}
        for candidate in json.loads(review.candidates):
            row = rows.get(bytes.fromhex(candidate["own_id"]))
            if row is None or row.review is not None or row.is_merged:
                continue
            is_gone = row.removed_at is not None
            is_apart = row.own_id not in reported and _account(row) != _account(withheld)
            if is_gone if candidate["evidence"]["old_was_removed"] else not is_gone and is_apart:
                match = _Match("review", candidate["score"], _dumped(candidate["evidence"]))
                available[candidate["own_id"]] = (row, match)
        return available


class _AccountFamilies:
    """Accounts that are one at the bank, oldest id first, and the features of their shown transactions."""

    def __init__(self, work: UnitOfWork) -> None:
        self._work = work
        self._shown: dict[str, list[TransactionFeatures]] = {}
        self._families: dict[AccountKey, tuple[AccountKey, ...]] = {}

    def of(self, key: AccountKey) -> tuple[AccountKey, ...]:
        """Return all ids of an account."""
        family = self._families.get(key)
        if family is None:
            older, younger = list(walk(self._work, key, "continues")), walk(self._work, key, "continued_by")
            family = self._families[key] = (*reversed(older), key, *younger)
        return family

    def is_ahead(self, account: AccountKey, other: AccountKey) -> bool:
        """Return whether an account is the same one in a younger, linked Item."""
        family = self.of(other)
        is_linked = account[0] != other[0] and self._work.items[account[0]].unlinked_at is None
        return account in family and is_linked and family.index(account) > family.index(other)

    def shown(self, key: AccountKey) -> Iterator[TransactionFeatures]:
        """Yield the shown transactions of the Item that has an account."""
        item = self._work.items.get(key[0])
        if item is not None and key[0] not in self._shown:
            self._shown[key[0]] = [self.features(row) for row in item.by_id.values() if row.is_shown]
        yield from self._shown.get(key[0], ())

    def features(self, row: Row, *, item_id: str | None = None, is_gone: bool = False) -> TransactionFeatures:
        """Return the features of a row within its account. `item_id`: the Item whose account its payload names."""
        payload = payload_of(row)
        account = (item_id or row.item_id, payload.account_id)
        return rules.features(row, payload, account=account, scope=self.of(account)[0], is_gone=is_gone)


def _chosen(decision: Decision) -> str | None:
    """Return the candidate that a decision names, "" where that is invalid; None where it names none."""
    try:
        detail = json.loads(decision.detail_json or '{"own_id": null}')
    except (ValueError, RecursionError):
        return ""
    own_id = detail.get("own_id") if isinstance(detail, dict) else ""
    return own_id if own_id is None or isinstance(own_id, str) else ""


def _account(row: Row) -> AccountKey:
    return (row.item_id, payload_of(row).account_id)


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
