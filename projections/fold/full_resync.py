"""Full resync: transactions that it does not name were removed by the bank, or wait for a person's decision.

Invariant: the marked rows of an Item (`missing_since_offset`) wait for one decision, about the record in the Item's
`missing_changeset_id`; `missing_rows` is their number.
"""

from collections.abc import Collection, Iterable

from projections.decode import transaction
from projections.decode.changeset import FullResync
from projections.model import pg_copy
from projections.model.record_context import RecordContext
from projections.model.unit_of_work import ItemRow, Row, UnitOfWork

REMOVALS_ALWAYS_MAX = 10
"""So many removals need no person, whatever their share: of a young Item's five transactions one is a fifth."""


def known_in(item: ItemRow, full_resync: FullResync) -> list[Row]:
    """Return the unremoved rows of the accounts within the window, as they are before the record."""
    known = []
    for row in item.by_id.values():
        if row.removed_at is None:
            payload = transaction.decode(row.schema, row.payload)
            if full_resync.covers(payload.account.decode(), pg_copy.read_date(payload.date)):
                known.append(row)
    return known


def missing_rows(known: Collection[Row], named: Collection[str], full_resync: FullResync) -> tuple[list[Row], bool]:
    """Return the known rows that the record does not name, by own id, and whether a person must decide about them.

    Call it once the record's own transactions are applied. `named` are the bank's ids in the record: a pending
    transaction that a posted one inherited has its id now.
    """
    missing = [row for row in known if row.removed_at is None and row.transaction_id not in named]
    missing.sort(key=lambda row: row.own_id)
    too_many = len(missing) * 1000 > full_resync.removals_permille_max * len(known)
    return missing, len(missing) > REMOVALS_ALWAYS_MAX and too_many


def marked(item: ItemRow) -> list[Row]:
    """Return the rows that wait for a decision, in the order of their own ids."""
    rows = (row for row in item.by_id.values() if row.missing_since_offset is not None)
    return sorted(rows, key=lambda row: row.own_id)


def mark(work: UnitOfWork, item: ItemRow, missing: Iterable[Row], context: RecordContext, *, known: int) -> None:
    """Mark rows as waiting for a decision about this record, with those that waited for one about an earlier record."""
    rows = {row.own_id: row for row in (*marked(item), *missing)}
    for row in rows.values():
        row.missing_since_offset = context.offset
        work.mark_changed(row)
    item.missing_rows, item.missing_changeset_id = len(rows), context.changeset_id
    work.changed_items[item.item_id] = item
    work.withheld_removals[item.item_id] = (
        f"{len(rows)} transactions of {known} are not in the restated history {context.changeset_id.hex()}"
    )
