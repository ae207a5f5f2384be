"""Applies what users say to the rows it is about, or lets it wait with the Item by Plaid's id. Pure."""

from collections.abc import Iterable, Sequence

from projections.decode.changeset import TransactionEdit
from projections.ledger import override_rules
from projections.ledger.postings import posted
from projections.model.change_tracker import Touched, remember
from projections.model.record_context import RecordContext
from projections.model.unit_of_work import ItemRow, Row, UnitOfWork


def apply(
    working: UnitOfWork, item: ItemRow, touched: Touched, place: RecordContext, said: Sequence[TransactionEdit]
) -> None:
    """Apply edits in order, behind all that the record says otherwise.

    A row that is removed or held keeps them for when it is shown. A transaction of another user's is none.
    Raises: Quarantine, where a value cannot be kept.
    """
    for edit in said:
        row = _found(working, item, edit, place.user)
        if row is None:
            waiting = override_rules.apply_edit(item.waiting_edits.get(edit.transaction_id), edit.fields, place.offset)
            if waiting is not None:
                item.waiting_edits = {**item.waiting_edits, edit.transaction_id: waiting}
                working.changed_items[item.item_id] = item
            continue
        overrides = override_rules.apply_edit(row.user_fields, edit.fields, place.offset)
        if overrides != row.user_fields:
            remember(row, touched)
            row.user_fields = overrides
            row.postings = posted(working.book, row)


def take_waiting(item: ItemRow, row: Row, ids: Iterable[str | None]) -> None:
    """Give a row what waits for any of these Plaid ids of it; the caller remembers the row and posts it."""
    for name in ids:
        if name in item.waiting_edits:
            row.user_fields = override_rules.merge(row.user_fields, item.waiting_edits[name])
            item.waiting_edits = {key: fields for key, fields in item.waiting_edits.items() if key != name}


def put_back(item: ItemRow, row: Row) -> None:
    """Let wait again what was given to a row that is gone before anybody saw it."""
    if row.user_fields is not None:
        item.waiting_edits = {**item.waiting_edits, row.transaction_id: row.user_fields}


def _found(working: UnitOfWork, item: ItemRow, edit: TransactionEdit, user: int) -> Row | None:
    """The row by its own id, wherever it lives now; else the one that has, or had, the Plaid id in the Item.

    The own id of a row that turned out to be another one is as good as none while the Plaid id leads to that one.
    """
    found = item.by_id.get(edit.transaction_id)
    if found is None or found.own_id != edit.own_id:
        named = _named(working, edit.own_id)
        found = found or _named(working, item.moved.get(edit.transaction_id))
        found = named if found is None or (named is not None and not named.is_merged) else found
    return found if found is not None and found.user == user else None


def _named(working: UnitOfWork, own_id: bytes | None) -> Row | None:
    for item in working.items.values():
        if own_id is not None and own_id in item.own_ids:
            for row in item.by_id.values():
                if row.own_id == own_id:
                    return row
    return None
