"""What the ledger says of a transaction now: the bank's amount, in the user's category or split as the user said."""

import msgspec

from projections.decode import transaction
from projections.decode.transaction import UNCATEGORISED
from projections.ledger import override_rules
from projections.model import pg_copy
from projections.model.book import NOTHING, Book, Posting
from projections.model.transaction_payload import Amount, TransactionPayload
from projections.model.unit_of_work import Row
from schemas import money
from schemas.encoding import codec
from schemas.log.records import Transaction


def posted(book: Book, row: Row, said: TransactionPayload | None = None) -> tuple[Posting, ...]:
    """The postings of a row by its payload and user fields: the one place that decides them.

    `said` are the row's payload where they are at hand as read. A row that is removed or held by a review has none.
    Splits that do not add up to the amount count for nothing, and the one category counts.
    """
    if not row.is_shown:
        return NOTHING
    said = said or transaction.reader(row.schema)(row.payload, 0, len(row.payload))
    if row.user_fields is None:
        return (book.posting(row.user, said),)
    users = override_rules.values(row.user_fields)
    if override_rules.SPLITS in users:
        bank: Transaction = codec.decoder(row.schema)(row.payload, 0)[0]
        found = override_rules.splits(users, bank.amount, bank.currency)
        if found is not None:
            return tuple(book.posting(row.user, _part(said, split, bank.currency)) for split in found)
    category = override_rules.category(users)
    return (book.posting(row.user, said if category is None else _in_category(said, category)),)


def _in_category(said: TransactionPayload, category: str) -> TransactionPayload:
    return msgspec.structs.replace(said, category=category.encode() or UNCATEGORISED)


def _part(said: TransactionPayload, split: override_rules.Split, currency: str) -> TransactionPayload:
    ledger = abs(money.ledger_amount(split.amount, currency))
    amount = Amount(b"", split.amount.value >= 0, ledger, pg_copy.numeric(ledger))
    return msgspec.structs.replace(_in_category(said, split.category), amount=amount)
