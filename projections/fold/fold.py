"""The fold: what an accepted changeset changes, compared with what is known. Pure.

First everything that the record says is applied to the working set, then the difference to the state before the
record is settled: at most one net event, and the transfers from one posting to another, for each transaction. So
the order within a record does not matter: a posted transaction and the removal of its pending one are one change.
What a restated history does not name, and what a decision about it concerns, is removed in between; what users say
comes last.
"""

from collections.abc import Sequence

from projections.decode.changeset import Changeset, FullResync
from projections.decode.transaction import ENRICHMENT
from projections.events import public_events
from projections.events.field_diff import changed_fields
from projections.events.public_events import CommonFields, public_schema
from projections.fold import apply_overrides, full_resync, opening_balances
from projections.fold.balances import fold_balances
from projections.gate.check import AcceptedRecord
from projections.ledger import override_rules
from projections.ledger.postings import posted
from projections.matching import transactions
from projections.model.book import NOTHING
from projections.model.change_tracker import Before, Touched, remember
from projections.model.record_context import RecordContext
from projections.model.transaction_payload import TransactionPayload
from projections.model.unit_of_work import FoldedRecord, ItemRow, NetEvent, Row, TransactionVersion, UnitOfWork
from schemas import events
from schemas.encoding import codec
from schemas.ids import own_id
from schemas.log import gate
from schemas.log.records import Decision, Head, Item, Removal

_SYNCS = frozenset({gate.SYNC, gate.RESTATED})
"""Records that say how things stood at the bank when they were made."""

_USER_FIELDS = "user_fields"
"""Before the name of a field that the user owns, where an event names what changed."""


def fold(working: UnitOfWork, record: AcceptedRecord) -> FoldedRecord:
    """Apply an accepted record to the working set, and give what it caused.

    `item` is None for a record that concerns no Item. The gate's own state is not touched here.
    Raises: Quarantine; the working set is of no use then.
    """
    item, head, place, said = record.item, record.log_record.head, record.context, record.changeset
    net: list[NetEvent] = []
    not_effective = said.not_effective
    if item is not None and (head.kind == gate.CHAINED or said.has_effect):
        common = public_events.common_fields(
            tenant=place.tenant,
            user_id=place.user_id,
            item_id=item.item_id,
            known_at=place.known_at,
            changeset=place.changeset_id,
        )
        _fold_item(working, item, head, place, said, common, net)
        whole = said.full_resync
        known = [] if whole is None else full_resync.known_in(item, whole)
        touched: Touched = {}
        heard: Sequence[TransactionPayload | Removal] = said.transactions
        if item.moved:
            heard = transactions.heard(working, item, heard, touched, place)
            not_effective = _counted(not_effective, transactions.PASSED_OVER, len(said.transactions) - len(heard))
        _apply(working, item, place, heard, touched)
        if whole is not None:
            _conclude(working, item, touched, place, said, whole, known)
        if said.decisions:
            not_effective = _decide(working, item, touched, place, said.decisions, not_effective)
        idle = transactions.resolve(working, item, touched, place, said)
        not_effective = _counted(not_effective, events.DECISION_MADE, idle)
        if said.edits:
            apply_overrides.apply(working, item, touched, place, said.edits)
        _settle(working, item, touched, place, common, net)
        fold_balances(working, item, place, said.balances, common, net)
        opening_balances.post(working, item, place)
    folded = FoldedRecord(
        place,
        head.item_id,
        head.kind,
        head.type,
        _cause(head),
        head.at,
        said.counts,
        not_effective,
        net,
        public_events.encode_block(net),
        head.body_fingerprint,
    )
    working.folded.append(folded)
    return folded


def _fold_item(
    working: UnitOfWork,
    item: ItemRow,
    head: Head,
    place: RecordContext,
    said: Changeset,
    common: CommonFields,
    net: list[NetEvent],
) -> None:
    if head.kind != gate.CHAINED and not said.items:
        return
    known_at = item.known_at = place.known_at
    working.changed_items[item.item_id] = item
    if head.type in _SYNCS:
        item.last_sync_at = known_at
    item.history_status = head.history_status or item.history_status
    if not said.items:
        return
    kinds = {kind for kind, *_ in said.items}
    _, last, payload, schema = said.items[-1]
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


def _apply(
    working: UnitOfWork,
    item: ItemRow,
    place: RecordContext,
    said: Sequence[TransactionPayload | Removal],
    touched: Touched,
) -> None:
    """Apply all that is said of transactions, in order, save that a posted one waits for its pending one."""
    waiting: list[TransactionPayload] = []
    by_id = item.by_id
    for payload in said:
        if type(payload) is not TransactionPayload:
            _remove(working, item, touched, payload.transaction_id, place)
            continue
        row = by_id.get(payload.transaction_id)
        if row is not None:
            _change(working, item, row, payload, touched)
        elif payload.pending_transaction_id is None:
            _insert(working, item, payload, touched, place)
        else:
            row = by_id.get(payload.pending_transaction_id)
            if row is not None:
                _inherit(working, item, row, payload, touched)
            else:
                waiting.append(payload)
    for payload in waiting:
        row = by_id.get(payload.transaction_id) or by_id.get(payload.pending_transaction_id or "")
        if row is None:
            _insert(working, item, payload, touched, place)
        elif row.transaction_id == payload.transaction_id:
            _change(working, item, row, payload, touched)
        else:
            _inherit(working, item, row, payload, touched)


def _insert(
    working: UnitOfWork, item: ItemRow, payload: TransactionPayload, touched: Touched, place: RecordContext
) -> None:
    transaction_id = payload.transaction_id
    salt = item.salt
    own = first = own_id(transaction_id, salt=salt)
    repeats = 0
    while own in item.own_ids:
        # The chain that began with this id lives on under another one; this is a second chain.
        own = own_id(transaction_id, salt=salt + place.changeset_id + repeats.to_bytes(4, "big"))
        repeats += 1
    row = Row(
        own,
        item.item_id,
        place.user,
        transaction_id,
        own is not first,
        payload.data,
        payload.schema,
        payload.columns,
        NOTHING,
        place.offset,
        place.offset,
        place.known_at,
        place.known_at if payload.is_enriched else None,
    )
    if item.waiting_edits:
        apply_overrides.take_waiting(item, row, (transaction_id, payload.pending_transaction_id))
    row.postings = posted(working.book, row, payload)
    item.by_id[transaction_id] = row
    item.own_ids.add(own)
    touched[own] = (row, None)


def _change(working: UnitOfWork, item: ItemRow, row: Row, payload: TransactionPayload, touched: Touched) -> None:
    if row.missing_since_offset is not None:
        full_resync.unmark(working, item, row)
    if row.payload == payload.data and row.removed_at is None:
        return  # says nothing new, like most of what Plaid calls modified
    remember(row, touched)
    row.payload, row.schema, row.columns, row.removed_at = payload.data, payload.schema, payload.columns, None
    row.postings = posted(working.book, row, payload)
    if not row.version:
        row.enriched_at = row.known_at if payload.is_enriched else None


def _inherit(working: UnitOfWork, item: ItemRow, row: Row, payload: TransactionPayload, touched: Touched) -> None:
    """Let a posted transaction go on in the row of its pending one, removed or not."""
    remember(row, touched)
    del item.by_id[row.transaction_id]
    row.transaction_id, row.own_id_inherited = payload.transaction_id, True
    item.by_id[payload.transaction_id] = row
    if item.waiting_edits:
        apply_overrides.take_waiting(item, row, (payload.transaction_id,))
    _change(working, item, row, payload, touched)


def _remove(working: UnitOfWork, item: ItemRow, touched: Touched, transaction_id: str, place: RecordContext) -> None:
    """Take a transaction back. An id that no row has is either unknown or superseded: nothing to do."""
    row = item.by_id.get(transaction_id)
    if row is not None and row.removed_at is None:
        remember(row, touched)
        row.removed_at, row.postings = place.known_at, NOTHING
        if row.missing_since_offset is not None:
            full_resync.unmark(working, item, row)


def _conclude(
    working: UnitOfWork,
    item: ItemRow,
    touched: Touched,
    place: RecordContext,
    said: Changeset,
    history: FullResync,
    known: Sequence[Row],
) -> None:
    """Remove what a whole history does not name, or let it wait for a person where that is too much."""
    named = {payload.transaction_id for payload in said.transactions if type(payload) is TransactionPayload}
    conclusion = full_resync.concluded(known, named, history)
    if conclusion.needs_a_person:
        full_resync.mark(working, item, conclusion.missing, place, known=len(known))
        return
    for row in conclusion.missing:
        _remove(working, item, touched, row.transaction_id, place)


def _decide(
    working: UnitOfWork,
    item: ItemRow,
    touched: Touched,
    place: RecordContext,
    decisions: Sequence[Decision],
    not_effective: dict[str, int],
) -> dict[str, int]:
    """Remove or keep what waits. Gives what has no effect, with the decisions about what does not wait any more."""
    idle = 0
    for decision in decisions:
        if decision.decision in transactions.DECISIONS:
            continue
        if item.missing_changeset_id is None or item.missing_changeset_id.hex() != decision.subject:
            idle += 1
            continue
        item.known_at = place.known_at
        for row in full_resync.marked(item):
            if decision.decision == events.APPROVE_REMOVALS:
                _remove(working, item, touched, row.transaction_id, place)
            else:
                full_resync.unmark(working, item, row)
    return _counted(not_effective, events.DECISION_MADE, idle)


def _counted(not_effective: dict[str, int], kind: str, count: int) -> dict[str, int]:
    """What has no effect, with some more of a kind."""
    return {**not_effective, kind: not_effective.get(kind, 0) + count} if count else not_effective


def _settle(
    working: UnitOfWork,
    item: ItemRow,
    touched: Touched,
    place: RecordContext,
    common: CommonFields,
    net: list[NetEvent],
) -> None:
    post, new = working.book.post, working.new
    for own, (row, before) in touched.items():
        if before is not None:
            about = common if row.item_id == item.item_id else common.about(row.item_id)
            _settle_known(working, row, before, place, about, net)
        elif row.removed_at is not None:  # came and went within the record
            del item.by_id[row.transaction_id]
            item.own_ids.discard(own)
            apply_overrides.put_back(item, row)
        else:
            new.append(row)
            item.transaction_rows += 1
            if row.review is not None:  # nobody sees it, and it counts for nothing, until a person decided
                continue
            row.version = 1
            row.transfers = post(own, row.postings, place)
            said = None if row.user_fields is None else override_rules.values_json(row.user_fields)
            event = public_events.first_transaction_event(common, own, row.payload, said)
            net.append(NetEvent(events.TRANSACTION_ADDED, public_schema(row.schema), own, event))
    if touched:
        working.changed_items[item.item_id] = item


def _settle_known(
    working: UnitOfWork, row: Row, before: Before, place: RecordContext, common: CommonFields, net: list[NetEvent]
) -> None:
    was_there, is_there = before.is_shown, row.is_shown
    if not was_there and not is_there:  # came back and went again within the record
        if not row.is_new:
            working.changed[row.own_id] = row
        return
    changed = changed_fields(before.payload, before.schema, row.payload, row.schema) if is_there else []
    changed += [f"{_USER_FIELDS}.{name}" for name in override_rules.changed_fields(before.user_fields, row.user_fields)]
    if was_there and is_there and not changed:  # other bytes, the same content
        row.payload, row.schema, row.postings = before.payload, before.schema, before.postings
        if row.user_fields != before.user_fields and not row.is_new:  # the same, said again later
            working.changed[row.own_id] = row
        return
    if row.version:
        working.versions.append(_version(row, before, place))
    row.version += 1
    row.last_changeset, row.known_at = place.offset, place.known_at
    if not ENRICHMENT.isdisjoint(changed):
        row.enriched_at = place.known_at
    row.transfers = working.book.settle(row.own_id, row.transfers, before.postings, row.postings, place)
    if not row.is_new:
        working.changed[row.own_id] = row
    net.append(_event_of(row, before, changed, common))


def _version(row: Row, before: Before, place: RecordContext) -> TransactionVersion:
    return TransactionVersion(
        row.own_id,
        row.version,
        row.user,
        before.item_id,
        before.transaction_id,
        before.payload,
        before.schema,
        before.user_fields,
        before.removed_at,
        before.review,
        before.changeset,
        before.known_at,
        place.offset,
        place.known_at,
    )


def _event_of(row: Row, before: Before, changed: list[str], common: CommonFields) -> NetEvent:
    """The one net event of a known transaction. One that comes back after a removal was added, to its readers."""
    users, previous_users = override_rules.values_json(row.user_fields), None
    if row.removed_at is not None:
        kind, changed, previous = events.TRANSACTION_REMOVED, [], None
    elif not before.is_shown:
        kind, changed, previous = events.TRANSACTION_ADDED, [], None
    else:
        kind, previous, previous_users = (
            events.TRANSACTION_MODIFIED,
            before.payload,
            override_rules.values_json(before.user_fields),
        )
    event = public_events.transaction_event(
        common,
        row.own_id,
        row.version,
        row.payload,
        changed=changed,
        previous=previous,
        user_fields=users,
        previous_user_fields=previous_users,
    )
    return NetEvent(kind, public_schema(row.schema), row.own_id, event)


def _cause(head: Head) -> dict[str, object]:
    cause = head.cause
    return {name: getattr(cause, name) for name in cause.__struct_fields__ if getattr(cause, name) not in (None, [])}
