"""Rows that are made from the attributes of the unit of work have a value for each column."""

import pytest

from projections.decode import transaction
from projections.model.unit_of_work import AccountVersion, Review, Row, TransactionMatch, TransactionVersion
from projections.store import rows, tables

TIME_US = 1_790_000_000_000_000


@pytest.mark.parametrize(
    ("table", "encode", "row"),
    [
        (
            tables.transaction_versions,
            rows.version_values,
            TransactionVersion(Row(b"o", "A", 7, "T", False, b"p", 3, None, (), 10, 10, TIME_US), 11, TIME_US + 1),
        ),
        (
            tables.account_versions,
            rows.account_version_values,
            AccountVersion("A", "a", 1, 7, "cached", b"p", 3, 10, TIME_US),
        ),
        (
            tables.transaction_matches,
            rows.match_values,
            TransactionMatch("A", "T", b"o", 7, "same", 90, "{}", 10, TIME_US),
        ),
        (tables.reviews, rows.review_values, Review(b"r", 7, "A", b"o", "[]", "why", 10, TIME_US)),
    ],
)
def test_each_column_has_its_value(table: tables.Table, encode: object, row: tuple[object, ...]) -> None:
    values = dict(zip(tables.column_names(table), encode(row), strict=True))  # type: ignore[operator]

    assert (values["user_number"], values["item_id"], values["changeset"]) == (7, "A", 10)
    assert str(values["known_at"]) == "2026-09-21 14:13:20+00:00"


def test_the_columns_that_decode_cuts_are_the_last_ones_of_a_transaction() -> None:
    assert rows.TRANSACTION_COLUMNS[-len(transaction.COLUMNS) :] == transaction.COLUMNS
    assert set(rows.TRANSACTION_COLUMNS) == set(tables.column_names(tables.transactions))
