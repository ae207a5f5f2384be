"""Encode the unit of work as rows for one SQL statement (asyncpg values in the order of a table's columns)."""

import datetime
import hashlib
import json
from collections.abc import Callable
from decimal import Decimal
from operator import attrgetter
from typing import Any

import zstandard
from sqlalchemy import DateTime, Table

from projections.decode import transaction
from projections.model import pg_copy
from projections.model.book import PENDING, POSTED, LedgerAccount, Transfer
from projections.model.unit_of_work import AccountRow, FoldedRecord, ItemRow, Row, UnitOfWork
from projections.store import tables
from schemas import money
from schemas.encoding import codec
from schemas.log.records import Account, Item, Transaction
from schemas.times import from_micros

TRANSACTION_COLUMNS = (
    *(name for name in tables.column_names(tables.transactions) if name not in transaction.COLUMNS),
    *transaction.COLUMNS,
)
"""All columns of `transactions`: first those of the fold, then those that decode cuts from the payload as one block."""

ZSTD_LEVEL = 1
"""0.6 µs a transaction; higher levels save under 10 % more."""

Values = tuple[Any, ...]

_ATTRIBUTES = {"user_number": "user", "payload_schema": "schema"}
"""Columns whose attribute in the unit of work has another name."""
_NO_KEY = (None, None)


def transaction_values(row: Row) -> Values:
    """Encode a row of `transactions`, in the order of TRANSACTION_COLUMNS."""
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
        payload.name,
        payload.merchant_name,
        payload.merchant_entity_id,
        payload.logo_url,
        payload.category_primary,
        payload.category_detailed,
        payload.category_confidence,
    )


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
    if row.source == "cached":
        payload, schema = row.cached_payload, row.cached_payload_schema
    else:
        payload, schema = row.realtime_payload, row.realtime_payload_schema
    assert payload is not None
    account: Account = codec.decoder(schema)(payload, 0)[0]
    return (
        row.item_id,
        row.account_id,
        row.user,
        account.persistent_account_id,
        account.name,
        account.official_name,
        account.mask,
        account.type,
        account.subtype,
        account.currency,
        *_scaled(account.current),
        *_scaled(account.available),
        *_scaled(account.limit),
        row.source,
        row.cached_payload,
        row.cached_payload_schema,
        from_micros(row.cached_at),
        row.realtime_payload,
        row.realtime_payload_schema,
        from_micros(row.realtime_at),
        row.version,
        row.last_changeset,
        from_micros(row.known_at),
        row.opened,
        row.opening_transfers,
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
        item.code,
        item.reason,
        item.effective_at,
        row.history_status,
        row.payload,
        row.schema,
        row.gate.head,
        row.head_offset,
        row.gate.unlinked,
        row.transaction_rows,
        from_micros(row.linked_at),
        from_micros(row.unlinked_at),
        from_micros(row.last_sync_at),
        row.missing_rows,
        row.missing_changeset_id,
        row.has_linked_items,
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


def _attribute_values(table: Table) -> Callable[[Any], Values]:
    """Build the encoder of objects that have an attribute for each column of the table."""
    attributes = attrgetter(*(_ATTRIBUTES.get(name, name) for name in tables.column_names(table)))
    times = [index for index, column in enumerate(table.columns) if isinstance(column.type, DateTime)]

    def encode(row: Any) -> Values:
        values = list(attributes(row))
        for index in times:
            values[index] = from_micros(values[index])
        return tuple(values)

    return encode


version_values = _attribute_values(tables.transaction_versions)
account_version_values = _attribute_values(tables.account_versions)
match_values = _attribute_values(tables.transaction_matches)
review_values = _attribute_values(tables.reviews)


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
