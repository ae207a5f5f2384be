"""Transactions that a record changes, each with its state before the record."""

from typing import NamedTuple

from projections.model.book import Posting
from projections.model.unit_of_work import Row


class RowBefore(NamedTuple):
    """A transaction as it was before the record."""

    item_id: str
    transaction_id: str
    payload: bytes
    schema: int
    user_fields: str | None
    removed_at: int | None
    review: bytes | None
    postings: tuple[Posting, ...]
    changeset: int
    known_at: int

    @property
    def is_shown(self) -> bool:
        """True where readers saw the row."""
        return self.removed_at is None and self.review is None


Touched = dict[bytes, tuple[Row, RowBefore | None]]
"""Own id to row and its state before the record; None for a row that the record inserted."""


def track(row: Row, touched: Touched) -> None:
    """Copy a row's state into `touched` ahead of its first change by the record."""
    if row.own_id not in touched:
        before = RowBefore(
            row.item_id,
            row.transaction_id,
            row.payload,
            row.schema,
            row.user_fields,
            row.removed_at,
            row.review,
            row.postings,
            row.last_changeset,
            row.known_at,
        )
        touched[row.own_id] = (row, before)
