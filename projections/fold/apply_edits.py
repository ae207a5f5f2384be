"""Apply user edits to their rows, or store them with the Item by Plaid's id until the row arrives."""

from collections.abc import Iterable, Sequence

from projections.decode.changeset import TransactionEdit
from projections.ledger import user_field_values
from projections.ledger.postings import posted
from projections.model.record_context import RecordContext
from projections.model.unit_of_work import ItemRow, Row, Touched, UnitOfWork, track


def apply_edits(
    work: UnitOfWork, item: ItemRow, touched: Touched, context: RecordContext, edits: Sequence[TransactionEdit]
) -> None:
    """Apply edits in order, after everything else in the record.

    A row that is removed or withheld keeps them for when it is shown. Another user's transaction is ignored.
    Raises: Quarantine, where a value cannot be stored.
    """
    for edit in edits:
        row = _edited_row(work, item, edit, context.user)
        if row is None:
            waiting = item.waiting_edits.get(edit.transaction_id)
            user_fields = user_field_values.apply_edit(waiting, edit.fields, context.offset)
            if user_fields is not None:
                item.waiting_edits = {**item.waiting_edits, edit.transaction_id: user_fields}
                work.changed_items[item.item_id] = item
            continue
        user_fields = user_field_values.apply_edit(row.user_fields, edit.fields, context.offset)
        if user_fields != row.user_fields:
            track(row, touched)
            row.user_fields = user_fields
            row.postings = posted(work.book, row)


def take_waiting(item: ItemRow, row: Row, ids: Iterable[str | None]) -> None:
    """Move the waiting edits of any of these Plaid ids to a row; the caller tracks the row and posts it."""
    for name in ids:
        if name in item.waiting_edits:
            row.user_fields = user_field_values.merge(row.user_fields, item.waiting_edits[name])
            item.waiting_edits = {key: fields for key, fields in item.waiting_edits.items() if key != name}


def put_back(item: ItemRow, row: Row) -> None:
    """Return the edits of a row to waiting: the row was removed before any reader saw it."""
    if row.user_fields is not None:
        item.waiting_edits = {**item.waiting_edits, row.transaction_id: row.user_fields}


def _edited_row(work: UnitOfWork, item: ItemRow, edit: TransactionEdit, user: int) -> Row | None:
    """Return the row with the own id, in any Item; else the one that has, or had, the Plaid id in the Item.

    A merged row does not count while the Plaid id leads to the row that goes on in its place.
    """
    row = item.by_id.get(edit.transaction_id)
    if row is None or row.own_id != edit.own_id:
        named = _by_own_id(work, edit.own_id)
        row = row or _by_own_id(work, item.moved.get(edit.transaction_id))
        row = named if row is None or (named is not None and not named.is_merged) else row
    return row if row is not None and row.user == user else None


def _by_own_id(work: UnitOfWork, own_id: bytes | None) -> Row | None:
    for item in work.items.values():
        if own_id is not None and own_id in item.own_ids:
            for row in item.by_id.values():
                if row.own_id == own_id:
                    return row
    return None
