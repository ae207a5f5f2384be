"""Encode the unit of work as rows for one SQL statement (asyncpg values in the order of a table's columns)."""

import datetime
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from operator import attrgetter
from typing import Any, TypeVar

import zstandard
from sqlalchemy import DateTime, Table

from projections.decode import transaction
from projections.model import pg_copy
from projections.model.book import PENDING, POSTED, LedgerAccount, Transfer
from projections.model.unit_of_work import AccountRow, FoldedRecord, ItemRow, Row, TransactionVersion, UnitOfWork
from projections.store import tables
from schemas import money
from schemas.encoding import codec
from schemas.log.records import Account, Item, Transaction
from schemas.times import from_micros, to_micros

TRANSACTION_COLUMNS = (
    *(name for name in tables.column_names(tables.transactions) if name not in transaction.COLUMNS),
    *transaction.COLUMNS,
)
"""All columns of `transactions`: first those of the fold, then those that decode cuts from the payload as one block."""

ZSTD_LEVEL = 1
"""0.6 µs a transaction; higher levels save under 10 % more."""

Values = tuple[Any, ...]
T = TypeVar("T")

_ATTRIBUTES = {"user_number": "user", "payload_schema": "schema", "head": "gate.head", "unlinked": "gate.unlinked"}
"""Columns whose attribute in the unit of work has another name."""
_NO_KEY = (None, None)


def encoder(table: Table, columns: Sequence[str] | None = None) -> Callable[[Any], Values]:
    """Build the encoder of objects that have an attribute for each of these columns, by default all of the table."""
    columns = columns or tables.column_names(table)
    attributes = attrgetter(*(_ATTRIBUTES.get(name, name) for name in columns))
    times = [index for index, name in enumerate(columns) if isinstance(table.columns[name].type, DateTime)]

    def encode(row: Any) -> Values:
        values = list(attributes(row))
        for index in times:
            if values[index] is not None:
                values[index] = from_micros(values[index])
        return tuple(values)

    return encode


def decoder(table: Table, kind: type[T]) -> Callable[..., T]:
    """Build the decoder of rows into structs: columns of the struct's names; arguments by name replace a column."""
    known = kind.__struct_fields__  # type: ignore[attr-defined]
    fields = {_ATTRIBUTES.get(name, name): name for name in tables.column_names(table)}
    times = {name for name, column in table.columns.items() if isinstance(column.type, DateTime)}
    fields = {field: name for field, name in fields.items() if field in known}

    def decode(row: Mapping[str, Any], **replaced: Any) -> T:
        read = {
            field: to_micros(row[name]) if name in times else row[name]
            for field, name in fields.items()
            if field not in replaced
        }
        return kind(**read, **replaced)

    return decode


def _between(table: Table, first: str, last: str) -> tuple[str, ...]:
    names = tables.column_names(table)
    return names[names.index(first) : names.index(last) + 1]


# A version has the columns of its transaction; its changeset is the last one then.
_former_values = encoder(
    tables.transactions,
    [name.replace("changeset", "last_changeset") for name in tables.column_names(tables.transaction_versions)[:-2]],
)
_text_values = attrgetter(*transaction.COLUMNS[transaction.COLUMNS.index("name") :])
_bank_account_values = attrgetter(*_between(tables.accounts, "persistent_account_id", "currency"))
_source_values = encoder(tables.accounts, _between(tables.accounts, "source", "opening_transfers"))
_bank_item_values = attrgetter("code", "reason", "effective_at")
_item_state_values = encoder(tables.items, _between(tables.items, "history_status", "has_linked_items"))


def transaction_values(row: Row) -> Values:
    """Encode a row of `transactions`, in the order of TRANSACTION_COLUMNS."""
    # By hand, since each live update comes by here: the generic encoder costs 1 µs more.
    payload: Transaction = codec.decoder(row.schema)(row.payload, 0)[0]
    amount = money.parse_decimal(payload.amount)
    return (
        row.own_id,
        row.user,
        row.item_id,
        row.transaction_id,
        row.own_id_inherited,
        row.version,
        row.transfers,
        row.first_changeset,
        row.last_changeset,
        from_micros(row.known_at),
        from_micros(row.enriched_at),
        from_micros(row.removed_at),
        row.payload,
        row.schema,
        row.user_fields,
        len(row.postings),
        row.review,
        row.missing_since_offset,
        payload.account_id,
        amount.value,
        amount.scale,
        payload.currency,
        payload.pending,
        _date(payload.date),
        payload.datetime,
        _date(payload.authorized_date),
        *_text_values(payload),
    )


def version_values(version: TransactionVersion) -> Values:
    """Encode a row of `transaction_versions`."""
    return (*_former_values(version.row), version.until_changeset, from_micros(version.until))


def transfer_values(transfer: Transfer) -> Values:
    """Encode a row of `ledger_transfers`."""
    context = transfer.context
    return (
        transfer.own_id,
        transfer.number,
        context.user,
        transfer.debit,
        transfer.credit,
        Decimal(transfer.amount),
        transfer.currency,
        transfer.layer,
        transfer.reverses,
        pg_copy.read_date(transfer.effective),
        context.partition,
        context.offset,
        from_micros(context.known_at),
    )


def ledger_account_values(account: LedgerAccount) -> Values:
    """Encode a row of `ledger_accounts`."""
    assert account.spec is not None
    return (account.id, *account.spec)


def ledger_balance_values(working: UnitOfWork) -> list[Values]:
    """Return the batch's additions to `ledger_balances`, in the order of the accounts' ids."""
    additions: list[Values] = []
    for account in sorted(working.book.accounts.values(), key=lambda account: account.id):
        for layer, debits, credits_ in (
            (PENDING, account.pending_debits, account.pending_credits),
            (POSTED, account.posted_debits, account.posted_credits),
        ):
            if debits or credits_:
                additions.append((account.id, layer, Decimal(debits), Decimal(credits_)))
    return additions


def account_values(row: AccountRow) -> Values:
    """Encode a row of `accounts`: its bank columns are those of the source that reported last."""
    payload, schema = row.reported(row.source)
    assert payload is not None
    account: Account = codec.decoder(schema)(payload, 0)[0]
    return (
        row.item_id,
        row.account_id,
        row.user,
        *_bank_account_values(account),
        *_scaled(account.current),
        *_scaled(account.available),
        *_scaled(account.limit),
        *_source_values(row),
        *(row.continues or _NO_KEY),
        *(row.continued_by or _NO_KEY),
    )


def item_values(row: ItemRow) -> Values:
    """Encode a row of `items`."""
    item = Item(row.item_id, "") if row.payload is None else codec.decoder(row.schema)(row.payload, 0)[0]
    return (
        row.item_id,
        row.user,
        row.partition,
        item.institution_id,
        item.institution_name,
        item.state or None,
        *_bank_item_values(item),
        *_item_state_values(row),
        _json(row.waiting_edits) if row.waiting_edits else None,
        from_micros(row.known_at),
    )


def changeset_values(folded: FoldedRecord, *, keeps_events: bool = True) -> Values:
    """Encode a row of `changesets`. The events of a redriven record are in the row of its redrive."""
    context = folded.context
    return (
        context.partition,
        context.offset,
        context.changeset_id,
        folded.item_id,
        context.user,
        folded.kind,
        folded.type,
        _json(folded.cause),
        _json(folded.counts),
        _json(folded.not_effective),
        len(folded.net_events),
        hashlib.sha256(folded.block).digest(),
        compress(folded.block) if keeps_events and folded.redriven_by is None else None,
        folded.redriven_by,
        from_micros(folded.produced_at),
        from_micros(context.known_at),
        folded.body_fingerprint,
    )


account_version_values = encoder(tables.account_versions)
match_values = encoder(tables.transaction_matches)
review_values = encoder(tables.reviews)


def compress(block: bytes) -> bytes:
    """Compress a block of net events for the column `events`."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(block)


def decompress(stored: bytes) -> bytes:
    """Return the block of net events of a column `events`."""
    return zstandard.ZstdDecompressor().decompress(stored)


def _scaled(text: str | None) -> tuple[int | None, int | None, str | None]:
    if text is None:
        return None, None, None
    amount = money.parse_decimal(text)
    return amount.value, amount.scale, text


def _date(text: str | None) -> datetime.date | None:
    return None if text is None else datetime.date.fromisoformat(text)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
