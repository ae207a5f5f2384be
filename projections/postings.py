"""What the ledger says of a transaction now: the bank's amount, in the user's category or split as the user said."""

import msgspec

from projections import copying, edits, words
from projections.ledger import NOTHING, Book, Posting
from projections.state import Row
from projections.words import UNCATEGORISED, Amount, Words
from schemas import codec, money
from schemas.records import Transaction


def posted(book: Book, row: Row, said: Words | None = None) -> tuple[Posting, ...]:
    """The postings of a row by its words and user fields: the one place that decides them.

    `said` are the row's words where they are at hand as read. A row that is removed or held by a review has none.
    Splits that do not add up to the amount count for nothing, and the one category counts.
    """
    if not row.is_shown:
        return NOTHING
    said = said or words.reader(row.schema)(row.words, 0, len(row.words))
    if row.user_fields is None:
        return (book.posting(row.user, said),)
    users = edits.values(row.user_fields)
    if edits.SPLITS in users:
        bank: Transaction = codec.decoder(row.schema)(row.words, 0)[0]
        found = edits.splits(users, bank.amount, bank.currency)
        if found is not None:
            return tuple(book.posting(row.user, _part(said, split, bank.currency)) for split in found)
    category = edits.category(users)
    return (book.posting(row.user, said if category is None else _in_category(said, category)),)


def _in_category(said: Words, category: str) -> Words:
    return msgspec.structs.replace(said, category=category.encode() or UNCATEGORISED)


def _part(said: Words, split: edits.Split, currency: str) -> Words:
    ledger = abs(money.ledger_amount(split.amount, currency))
    amount = Amount(b"", split.amount.value >= 0, ledger, copying.numeric(ledger))
    return msgspec.structs.replace(_in_category(said, split.category), amount=amount)
