"""Postings of a transaction: the bank's amount, in the user's category or split by the user."""

from msgspec.structs import replace

from projections.decode import transaction
from projections.decode.transaction import UNCATEGORISED
from projections.ledger import user_field_values
from projections.model import pg_copy
from projections.model.book import NOTHING, Book, Posting
from projections.model.transaction_payload import Amount, TransactionPayload
from projections.model.unit_of_work import Row
from schemas import money
from schemas.encoding import codec
from schemas.log.records import Transaction


def posted(book: Book, row: Row, payload: TransactionPayload | None = None) -> tuple[Posting, ...]:
    """Return the postings of a row by its payload and user fields: the one place that decides them.

    `payload` is the row's, where it is decoded already. A row that is removed or withheld by a review has none. Splits
    that do not add up to the amount are ignored for the one category.
    """
    if not row.is_shown:
        return NOTHING
    payload = payload or transaction.decode(row.schema, row.payload)
    if row.user_fields is None:
        return (book.posting(row.user, payload),)
    overrides = user_field_values.values(row.user_fields)
    if user_field_values.SPLITS in overrides:
        bank: Transaction = codec.decoder(row.schema)(row.payload, 0)[0]
        splits = user_field_values.splits(overrides, bank.amount, bank.currency)
        if splits is not None:
            return tuple(book.posting(row.user, _part(payload, split, bank.currency)) for split in splits)
    category = user_field_values.category(overrides)
    return (book.posting(row.user, payload if category is None else _in_category(payload, category)),)


def _in_category(payload: TransactionPayload, category: str) -> TransactionPayload:
    return replace(payload, category=category.encode() or UNCATEGORISED)


def _part(payload: TransactionPayload, split: user_field_values.Split, currency: str) -> TransactionPayload:
    ledger = abs(money.ledger_amount(split.amount, currency))
    amount = Amount(b"", split.amount.value >= 0, ledger, pg_copy.numeric(ledger))
    return replace(_in_category(payload, split.category), amount=amount)
