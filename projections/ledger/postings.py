"""What the ledger says of a transaction now: the bank's amount, in the user's category or split as the user said."""

import msgspec

from projections.decode import transaction
from projections.decode.transaction import UNCATEGORISED, Amount, Words
from projections.ledger import user_overrides
from projections.ledger.ledger import NOTHING, Book, Posting
from projections.model import pg_copy
from projections.model.unit_of_work import Row
from schemas import money
from schemas.encoding import codec
from schemas.log.records import Transaction


def posted(book: Book, row: Row, said: Words | None = None) -> tuple[Posting, ...]:
    """The postings of a row by its words and user fields: the one place that decides them.

    `said` are the row's words where they are at hand as read. A row that is removed or held by a review has none.
    Splits that do not add up to the amount count for nothing, and the one category counts.
    """
    if not row.is_shown:
        return NOTHING
    said = said or transaction.reader(row.schema)(row.words, 0, len(row.words))
    if row.user_fields is None:
        return (book.posting(row.user, said),)
    users = user_overrides.values(row.user_fields)
    if user_overrides.SPLITS in users:
        bank: Transaction = codec.decoder(row.schema)(row.words, 0)[0]
        found = user_overrides.splits(users, bank.amount, bank.currency)
        if found is not None:
            return tuple(book.posting(row.user, _part(said, split, bank.currency)) for split in found)
    category = user_overrides.category(users)
    return (book.posting(row.user, said if category is None else _in_category(said, category)),)


def _in_category(said: Words, category: str) -> Words:
    return msgspec.structs.replace(said, category=category.encode() or UNCATEGORISED)


def _part(said: Words, split: user_overrides.Split, currency: str) -> Words:
    ledger = abs(money.ledger_amount(split.amount, currency))
    amount = Amount(b"", split.amount.value >= 0, ledger, pg_copy.numeric(ledger))
    return msgspec.structs.replace(_in_category(said, split.category), amount=amount)
