"""Fold an accepted record into the unit of work.

All reports of the record are applied first, then the difference to the state before the record is settled: at most one
net event for each transaction, and the transfers between its postings. So the order within a record does not matter: a
posted transaction and the removal of its pending one are one change.
"""

from collections.abc import Sequence

from projections.decode import transaction
from projections.decode.changeset import Changeset, FullResync
from projections.decode.transaction import ENRICHMENT
from projections.events import public_events
from projections.events.field_diff import changed_fields
from projections.events.public_events import CommonFields, public_schema
from projections.fold import apply_edits, full_resync, opening_balances
from projections.fold.balances import fold_balances
from projections.gate.check import AcceptedRecord
from projections.ledger import user_field_values
from projections.ledger.postings import posted
from projections.matching import transactions
from projections.model.book import NOTHING
from projections.model.record_context import RecordContext
from projections.model.transaction_payload import TransactionPayload
from projections.model.unit_of_work import (
    FoldedRecord,
    ItemRow,
    NetEvent,
    Row,
    Touched,
    TransactionMatch,
    TransactionVersion,
    UnitOfWork,
    track,
)
from schemas import events
from schemas.encoding import codec
from schemas.ids import own_id
from schemas.log import gate
from schemas.log.records import Decision, Head, Item, Removal

_SYNCS = frozenset({gate.SYNC, gate.RESTATED})
"""Records with the bank's state at the time when they were produced."""

_USER_FIELDS = "user_fields"
"""Before the name of a user's field, where an event names the changed fields."""


def fold(work: UnitOfWork, record: AcceptedRecord) -> FoldedRecord:
    """Apply an accepted record to the unit of work, and return its effect. The gate's state is not changed here.

    Raises: Quarantine; the unit of work is of no use then.
    """
    item, head, context, changeset = record.item, record.log_record.head, record.context, record.changeset
    net: list[NetEvent] = []
    not_effective = changeset.not_effective
    if item is not None and (head.kind == gate.CHAINED or changeset.has_effect):
        not_effective = _fold_item(work, item, head, context, changeset, net)
    cause = {name: getattr(head.cause, name) for name in head.cause.__struct_fields__}
    folded = FoldedRecord(
        context,
        head.item_id,
        head.kind,
        head.type,
        {name: value for name, value in cause.items() if value not in (None, [])},
        head.at,
        changeset.counts,
        not_effective,
        net,
        public_events.encode_block(net),
        head.body_fingerprint,
    )
    work.folded.append(folded)
    return folded


def _fold_item(
    work: UnitOfWork, item: ItemRow, head: Head, context: RecordContext, changeset: Changeset, net: list[NetEvent]
) -> dict[str, int]:
    """Fold the parts of a record in order, and return the counts of events without effect."""
    common = public_events.common_fields(
        tenant=context.tenant,
        user_id=context.user_id,
        item_id=item.item_id,
        known_at=context.known_at,
        changeset=context.changeset_id,
    )
    _apply_item(work, item, head, context, changeset, common, net)
    resync = changeset.full_resync
    known = [] if resync is None else full_resync.known_in(item, resync)
    touched: Touched = {}
    reports: Sequence[TransactionPayload | Removal] = changeset.transactions
    skipped = 0
    if item.moved:
        reports = transactions.filter_moved(work, item, reports, touched, context)
        skipped = len(changeset.transactions) - len(reports)
    _apply_transactions(work, item, context, reports, touched)
    if resync is not None:
        _remove_missing(work, item, touched, context, changeset, resync, known)
    idle = _decide_removals(work, item, touched, context, changeset.decisions) if changeset.decisions else 0
    idle += transactions.resolve(work, item, touched, context, changeset)
    if changeset.edits:
        apply_edits.apply_edits(work, item, touched, context, changeset.edits)
    _emit_changes(work, item, touched, context, common, net)
    fold_balances(work, item, context, changeset.balances, common, net)
    opening_balances.post(work, item, context)
    counts = changeset.not_effective
    for kind, count in ((transactions.PASSED_OVER, skipped), (events.DECISION_MADE, idle)):
        if count:
            counts = {**counts, kind: counts.get(kind, 0) + count}
    return counts


def _apply_item(
    work: UnitOfWork,
    item: ItemRow,
    head: Head,
    context: RecordContext,
    changeset: Changeset,
    common: CommonFields,
    net: list[NetEvent],
) -> None:
    if head.kind != gate.CHAINED and not changeset.items:
        return
    known_at = item.known_at = context.known_at
    work.changed_items[item.item_id] = item
    if head.type in _SYNCS:
        item.last_sync_at = known_at
    item.history_status = head.history_status or item.history_status
    if not changeset.items:
        return
    kinds = {kind for kind, *_ in changeset.items}
    _, last, payload, schema = changeset.items[-1]
    before, before_schema, item.payload, item.schema = item.payload, item.schema, payload, schema
    item.history_status = last.history_status or item.history_status
    if events.ITEM_UNLINKED in kinds:
        kind, item.unlinked_at = events.ITEM_UNLINKED, known_at
    elif events.ITEM_LINKED in kinds:
        kind, item.linked_at = events.ITEM_LINKED, known_at
    elif before is None or changed_fields(before, before_schema, payload, schema):
        kind = events.ITEM_STATE_CHANGED
    else:
        item.payload, item.schema = before, before_schema
        return
    previous: Item | None = codec.decoder(before_schema)(before, 0)[0] if before is not None else None
    event = public_events.item_event(common, payload, previous.state if previous else None)
    net.append(NetEvent(kind, public_schema(schema), item.item_id.encode(), event))


def _apply_transactions(
    work: UnitOfWork,
    item: ItemRow,
    context: RecordContext,
    reports: Sequence[TransactionPayload | Removal],
    touched: Touched,
) -> None:
    """Apply reports in order, except that a posted transaction waits for its pending one."""
    waiting: list[TransactionPayload] = []
    by_id = item.by_id
    for payload in reports:
        if type(payload) is not TransactionPayload:
            _remove(work, item, touched, payload.transaction_id, context)
            continue
        row = by_id.get(payload.transaction_id)
        if row is not None:
            _change(work, item, row, payload, touched)
        elif payload.pending_transaction_id is None:
            _insert(work, item, payload, touched, context)
        else:
            waiting.append(payload)
    for payload in waiting:
        row = by_id.get(payload.transaction_id)
        if row is not None:
            _change(work, item, row, payload, touched)
        elif not _continue_pending(work, item, payload, touched, context):
            _insert(work, item, payload, touched, context)


def _insert(
    work: UnitOfWork, item: ItemRow, payload: TransactionPayload, touched: Touched, context: RecordContext
) -> None:
    transaction_id = payload.transaction_id
    salt = item.item_id.encode()
    own = first = own_id(transaction_id, salt=salt)
    repeats = 0
    while own in item.own_ids:
        # The chain that began with this id goes on under another one; this is a second chain.
        own = own_id(transaction_id, salt=salt + context.changeset_id + repeats.to_bytes(4, "big"))
        repeats += 1
    row = Row(
        own,
        item.item_id,
        context.user,
        transaction_id,
        own is not first,
        payload.data,
        payload.schema,
        payload.columns,
        NOTHING,
        context.offset,
        context.offset,
        context.known_at,
        context.known_at if payload.is_enriched else None,
    )
    if item.waiting_edits:
        apply_edits.take_waiting(item, row, (transaction_id, payload.pending_transaction_id))
    row.postings = posted(work.book, row, payload)
    item.by_id[transaction_id] = row
    item.own_ids.add(own)
    touched[own] = (row, None)


def _change(work: UnitOfWork, item: ItemRow, row: Row, payload: TransactionPayload, touched: Touched) -> None:
    if row.missing_since_offset is not None:
        work.clear_missing(item, row)
    if row.payload == payload.data and row.removed_at is None:
        return  # nothing new, like most transactions that Plaid calls modified
    track(row, touched)
    row.payload, row.schema, row.columns, row.removed_at = payload.data, payload.schema, payload.columns, None
    row.postings = posted(work.book, row, payload)
    if not row.version:
        row.enriched_at = row.known_at if payload.is_enriched else None


def _continue_pending(
    work: UnitOfWork, item: ItemRow, payload: TransactionPayload, touched: Touched, context: RecordContext
) -> bool:
    """Continue the row that a report names as its pending one, removed or not; False where it names none.

    That row is in the same account, and it is pending or this record removes it. Anything else that a bank names stays
    a transaction of its own, or it would be lost.
    """
    row = item.by_id.get(payload.pending_transaction_id or "")
    if row is None:
        return False
    known = transaction.decode(row.schema, row.payload)
    is_removed_now = row.removed_at is not None and row.own_id in touched
    if known.account != payload.account or not (known.is_pending or is_removed_now):
        return False
    track(row, touched)
    del item.by_id[row.transaction_id]
    row.transaction_id, row.own_id_inherited = payload.transaction_id, True
    item.by_id[payload.transaction_id] = row
    if not known.is_pending:  # recorded, since nothing in the rows shows it later
        match = (item.item_id, payload.transaction_id, row.own_id, context.user, "plaid", 100, "{}")
        work.matches.append(TransactionMatch(*match, context.offset, context.known_at))
    if item.waiting_edits:
        apply_edits.take_waiting(item, row, (payload.transaction_id,))
    _change(work, item, row, payload, touched)
    return True


def _remove(work: UnitOfWork, item: ItemRow, touched: Touched, transaction_id: str, context: RecordContext) -> None:
    """Remove a transaction. An id without a row is either unknown or superseded: nothing to do."""
    row = item.by_id.get(transaction_id)
    if row is not None and row.removed_at is None:
        track(row, touched)
        row.removed_at, row.postings = context.known_at, NOTHING
        if row.missing_since_offset is not None:
            work.clear_missing(item, row)


def _remove_missing(
    work: UnitOfWork,
    item: ItemRow,
    touched: Touched,
    context: RecordContext,
    changeset: Changeset,
    resync: FullResync,
    known: Sequence[Row],
) -> None:
    """Remove the rows that a full resync does not name, or mark them for a person where they are too many."""
    named = {payload.transaction_id for payload in changeset.transactions if type(payload) is TransactionPayload}
    missing, needs_a_person = full_resync.missing_rows(known, named, resync)
    if needs_a_person:
        full_resync.mark(work, item, missing, context, known=len(known))
        return
    for row in missing:
        _remove(work, item, touched, row.transaction_id, context)


def _decide_removals(
    work: UnitOfWork, item: ItemRow, touched: Touched, context: RecordContext, decisions: Sequence[Decision]
) -> int:
    """Remove or keep marked rows, and return the number of decisions about rows that do not wait any more."""
    idle = 0
    for decision in decisions:
        if decision.decision in transactions.DECISIONS:
            continue
        if item.missing_changeset_id is None or item.missing_changeset_id.hex() != decision.subject:
            idle += 1
            continue
        item.known_at = context.known_at
        for row in full_resync.marked(item):
            if decision.decision == events.APPROVE_REMOVALS:
                _remove(work, item, touched, row.transaction_id, context)
            else:
                work.clear_missing(item, row)
    return idle


def _emit_changes(
    work: UnitOfWork, item: ItemRow, touched: Touched, context: RecordContext, common: CommonFields, net: list[NetEvent]
) -> None:
    post, new = work.book.post, work.new
    for own, (row, before) in touched.items():
        if before is not None:
            about = common if row.item_id == item.item_id else common.about(row.item_id)
            _emit_change(work, row, before, context, about, net)
        elif row.removed_at is not None:  # added and removed by the same record
            del item.by_id[row.transaction_id]
            item.own_ids.discard(own)
            apply_edits.put_back(item, row)
        else:
            new.append(row)
            item.transaction_rows += 1
            if row.review is not None:  # no reader sees it, and it counts for nothing, until a person decided
                continue
            row.version = 1
            row.transfers = post(own, row.postings, context)
            user_fields = None if row.user_fields is None else user_field_values.values_json(row.user_fields)
            event = public_events.first_transaction_event(common, own, row.payload, user_fields)
            net.append(NetEvent(events.TRANSACTION_ADDED, public_schema(row.schema), own, event))
    if touched:
        work.changed_items[item.item_id] = item


def _emit_change(
    work: UnitOfWork, row: Row, before: Row, context: RecordContext, common: CommonFields, net: list[NetEvent]
) -> None:
    was_there, is_there = before.is_shown, row.is_shown
    if not was_there and not is_there:  # restored and removed again by the same record
        work.mark_changed(row)
        return
    changed = changed_fields(before.payload, before.schema, row.payload, row.schema) if is_there else []
    changed += [
        f"{_USER_FIELDS}.{name}" for name in user_field_values.changed_fields(before.user_fields, row.user_fields)
    ]
    if was_there and is_there and not changed:  # other bytes, the same content
        row.payload, row.schema, row.postings = before.payload, before.schema, before.postings
        if row.user_fields != before.user_fields:  # the same values, edited again later
            work.mark_changed(row)
        return
    if row.version:
        work.versions.append(TransactionVersion(before, context.offset, context.known_at))
    row.version += 1
    row.last_changeset, row.known_at = context.offset, context.known_at
    if not ENRICHMENT.isdisjoint(changed):
        row.enriched_at = context.known_at
    row.transfers = work.book.settle(row.own_id, row.transfers, before.postings, row.postings, context)
    if not row.is_new:
        work.changed[row.own_id] = row
    net.append(_event_of(row, before, changed, common))


def _event_of(row: Row, before: Row, changed: list[str], common: CommonFields) -> NetEvent:
    """Return the one net event of a known transaction. One that returns after a removal was added, to its readers."""
    previous: bytes | None
    kind, previous, previous_user_fields = events.TRANSACTION_MODIFIED, before.payload, before.user_fields
    if row.removed_at is not None or not before.is_shown:
        kind = events.TRANSACTION_ADDED if row.removed_at is None else events.TRANSACTION_REMOVED
        changed, previous, previous_user_fields = [], None, None
    event = public_events.transaction_event(
        common,
        row.own_id,
        row.version,
        row.payload,
        changed=changed,
        previous=previous,
        user_fields=user_field_values.values_json(row.user_fields),
        previous_user_fields=user_field_values.values_json(previous_user_fields),
    )
    return NetEvent(kind, public_schema(row.schema), row.own_id, event)
