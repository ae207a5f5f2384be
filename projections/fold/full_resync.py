"""A restated history: what it does not name was removed by the bank, or waits for a person's decision. Pure.

Invariant: the marked rows of an Item (`missing_since_offset`) are those that wait for one decision, about the record that the
Item names in its own `missing_since_offset`; `missing_rows` is their number.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from projections.decode import transaction
from projections.decode.changeset import FullResync
from projections.model import pg_copy
from projections.model.record_context import RecordContext
from projections.model.unit_of_work import ItemRow, Row, UnitOfWork

REMOVALS_ALWAYS_MAX = 10
"""So many removals need no person, whatever their share: of a young Item's five transactions one is a fifth."""


class Conclusion(NamedTuple):
    """What a restated history says of the rows that were known in its window, in the order of their own ids."""

    missing: list[Row]
    needs_a_person: bool


def known_in(item: ItemRow, history: FullResync) -> list[Row]:
    """The unremoved rows of the history's accounts within its window, as they are before the record."""
    return [row for row in item.by_id.values() if row.removed_at is None and covers(history, row)]


def covers(history: FullResync, row: Row, account_id: str | None = None) -> bool:
    """Whether the history would name a row; `account_id` is what its Item calls the row's account, where not as it."""
    said = transaction.reader(row.schema)(row.payload, 0, len(row.payload))
    if (account_id or said.account.decode()) not in history.account_ids:
        return False
    date = pg_copy.read_date(said.date)
    return (history.since is None or history.since <= date) and (history.until is None or date <= history.until)


def concluded(known: Collection[Row], named: Collection[str], history: FullResync) -> Conclusion:
    """What is missing of the known rows once the record's own payload are applied.

    `named` are the bank's ids that the record names: a pending transaction that a posted one inherited has its id now.
    """
    missing = [row for row in known if row.removed_at is None and row.transaction_id not in named]
    missing.sort(key=_own_id)
    too_many = len(missing) * 1000 > history.removals_permille_max * len(known)
    return Conclusion(missing, len(missing) > REMOVALS_ALWAYS_MAX and too_many)


def marked(item: ItemRow) -> list[Row]:
    """The rows that wait for a decision, in the order of their own ids."""
    return sorted((row for row in item.by_id.values() if row.missing_since_offset is not None), key=_own_id)


def mark(working: UnitOfWork, item: ItemRow, missing: Iterable[Row], place: RecordContext, *, known: int) -> None:
    """Let rows wait for a decision about this record. What waited for one about an earlier record joins them."""
    rows = {row.own_id: row for row in (*marked(item), *missing)}
    for row in rows.values():
        row.missing_since_offset = place.offset
        _changed(working, row)
    item.missing_rows, item.missing_changeset_id = len(rows), place.changeset_id
    working.changed_items[item.item_id] = item
    working.withheld_removals[item.item_id] = (
        f"{len(rows)} transactions of {known} are not in the restated history {place.changeset_id.hex()}"
    )


def unmark(working: UnitOfWork, item: ItemRow, row: Row) -> None:
    """Take a row's mark away: the bank spoke of it, it was removed, or a person decided."""
    row.missing_since_offset = None
    _changed(working, row)
    item.missing_rows -= 1
    working.changed_items[item.item_id] = item
    if not item.missing_rows:
        item.missing_changeset_id = None
        working.withheld_removals[item.item_id] = None


def _changed(working: UnitOfWork, row: Row) -> None:
    if not row.is_new:
        working.changed[row.own_id] = row


def _own_id(row: Row) -> bytes:
    return row.own_id
