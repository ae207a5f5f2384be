"""The working set as rows: values for one statement over unnest, and COPY's binary form where there are many.

A row's values are in the order of its table's columns as named here.
"""

import datetime
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

import zstandard

from projections.decode import transaction
from projections.model import book, pg_copy
from projections.model.book import LedgerAccount, Transfer
from projections.model.unit_of_work import (
    AccountRow,
    AccountVersion,
    FoldedRecord,
    ItemRow,
    Review,
    Row,
    TransactionMatch,
    TransactionVersion,
    UnitOfWork,
)
from schemas import money
from schemas.encoding import codec
from schemas.log.records import Account, Item, Transaction
from schemas.times import from_micros

TRANSACTION_COLUMNS = (
    "own_id",
    "user_number",
    "item_id",
    "transaction_id",
    "own_id_inherited",
    "version",
    "transfers",
    "first_changeset",
    "last_changeset",
    "known_at",
    "enriched_at",
    "removed_at",
    "missing_since_offset",
    "user_fields",
    "active_transfers",
    "review",
    "payload",
    "payload_schema",
    *transaction.COLUMNS,
)
TRANSFER_COLUMNS = (
    "own_id",
    "number",
    "user_number",
    "debit",
    "credit",
    "amount",
    "currency",
    "layer",
    "reverses",
    "effective",
    "partition",
    "changeset",
    "known_at",
)
LEDGER_ACCOUNT_COLUMNS = ("id", "user_number", "kind", "reference", "currency", "scale")
LEDGER_BALANCE_COLUMNS = ("account", "layer", "debits", "credits")
ACCOUNT_COLUMNS = (
    "item_id",
    "account_id",
    "user_number",
    "persistent_account_id",
    "name",
    "official_name",
    "mask",
    "type",
    "subtype",
    "currency",
    "current_value",
    "current_scale",
    "current",
    "available_value",
    "available_scale",
    "available",
    "limit_value",
    "limit_scale",
    "limit",
    "source",
    "cached_payload",
    "cached_payload_schema",
    "cached_at",
    "realtime_payload",
    "realtime_payload_schema",
    "realtime_at",
    "version",
    "last_changeset",
    "known_at",
    "opened",
    "opening_transfers",
    "continues_item",
    "continues_account",
    "continued_by_item",
    "continued_by_account",
)
ITEM_COLUMNS = (
    "item_id",
    "user_number",
    "partition",
    "institution_id",
    "institution_name",
    "state",
    "code",
    "reason",
    "effective_at",
    "history_status",
    "payload",
    "payload_schema",
    "head",
    "head_offset",
    "unlinked",
    "transaction_rows",
    "linked_at",
    "unlinked_at",
    "last_sync_at",
    "missing_rows",
    "missing_changeset_id",
    "has_linked_items",
    "waiting_edits",
    "known_at",
)
CHANGESET_COLUMNS = (
    "partition",
    "source_offset",
    "id",
    "item_id",
    "user_number",
    "kind",
    "type",
    "cause",
    "counts",
    "not_effective",
    "net_events",
    "digest",
    "events",
    "redriven_by",
    "produced_at",
    "known_at",
    "body_fingerprint",
)
VERSION_COLUMNS = (
    "own_id",
    "version",
    "user_number",
    "item_id",
    "transaction_id",
    "payload",
    "payload_schema",
    "user_fields",
    "removed_at",
    "review",
    "changeset",
    "known_at",
    "until_changeset",
    "until",
)
ACCOUNT_VERSION_COLUMNS = (
    "item_id",
    "account_id",
    "version",
    "user_number",
    "source",
    "payload",
    "payload_schema",
    "changeset",
    "known_at",
)
LINK_COLUMNS = (
    "item_id",
    "transaction_id",
    "own_id",
    "user_number",
    "rule",
    "score",
    "evidence",
    "changeset",
    "known_at",
)
REVIEW_COLUMNS = (
    "id",
    "user_number",
    "item_id",
    "own_id",
    "candidates",
    "reason",
    "state",
    "chosen",
    "changeset",
    "decided",
    "known_at",
    "decided_at",
)

ZSTD_LEVEL = 1
"""0.6 µs a transaction; higher levels save under 10 % more."""

Values = tuple[Any, ...]

_NOBODY = (None, None)

_ID = pg_copy.length(16)
_TRANSACTION_START = len(TRANSACTION_COLUMNS).to_bytes(2, "big") + _ID
_TRANSFER_START = len(TRANSFER_COLUMNS).to_bytes(2, "big") + _ID
_counters = struct.Struct(">i?iiiiiqiqiq").pack
"""own_id_inherited, version, transfers, first_changeset, last_changeset, known_at: each behind its length."""
_PLAIN = pg_copy.NULL + pg_copy.int2(1) + pg_copy.NULL
"""user_fields, active_transfers and review of a row that only the bank spoke of."""
_number_and_user = struct.Struct(">iiiq").pack


def copy_transactions(changed: Iterable[Row]) -> Iterator[bytes]:
    """Rows of `transactions` for COPY."""
    join, text, moment_field, length, counters = b"".join, pg_copy.text, pg_copy.moment, pg_copy.length, _counters
    null, int8, plain = pg_copy.NULL, pg_copy.int8, _PLAIN
    user, item_id, owner = None, None, b""
    schema, number = None, b""
    for row in changed:
        if row.item_id is not item_id or row.user != user:
            user, item_id = row.user, row.item_id
            owner = pg_copy.int8(user) + text(item_id)
        if row.schema != schema:
            schema = row.schema
            number = pg_copy.int2(schema)
        columns = row.columns
        if columns is None:
            columns = transaction.reader(row.schema)(row.payload, 0, len(row.payload)).columns
        yield join(
            (
                _TRANSACTION_START,
                row.own_id,
                owner,
                text(row.transaction_id),
                counters(
                    1,
                    row.own_id_inherited,
                    4,
                    row.version,
                    4,
                    row.transfers,
                    8,
                    row.first_changeset,
                    8,
                    row.last_changeset,
                    8,
                    row.known_at - pg_copy.EPOCH_US,
                ),
                null if row.enriched_at is None else moment_field(row.enriched_at),
                null if row.removed_at is None else moment_field(row.removed_at),
                null if row.missing_since_offset is None else int8(row.missing_since_offset),
                plain
                if row.user_fields is None and row.review is None and len(row.postings) == 1
                else _said_by_us(row),
                length(len(row.payload)),
                row.payload,
                number,
                columns,
            )
        )


def _said_by_us(row: Row) -> bytes:
    return pg_copy.jsonb(row.user_fields) + pg_copy.int2(len(row.postings)) + pg_copy.raw(row.review)


def copy_transfers(transfers: Iterable[Transfer]) -> Iterator[bytes]:
    """Rows of `ledger_transfers` for COPY."""
    join, number_and_user, int4, null = b"".join, _number_and_user, pg_copy.int4, pg_copy.NULL
    kinds: dict[tuple[str, str], bytes] = {}
    context, tail = None, b""
    for one in transfers:
        if one.context is not context:
            context = one.context
            tail = int4(context.partition) + pg_copy.int8(context.offset) + pg_copy.moment(context.known_at)
        kind = kinds.get((one.currency, one.layer))
        if kind is None:
            kind = kinds[one.currency, one.layer] = pg_copy.text(one.currency) + pg_copy.text(one.layer)
        yield join(
            (
                _TRANSFER_START,
                one.own_id,
                number_and_user(4, one.number, 8, context.user),
                _ID,
                one.debit,
                _ID,
                one.credit,
                one.amount_field,
                kind,
                null if one.reverses is None else int4(one.reverses),
                one.effective,
                tail,
            )
        )


def transaction_values(row: Row) -> Values:
    """A row of `transactions`."""
    said: Transaction = codec.decoder(row.schema)(row.payload, 0)[0]
    amount = money.parse_decimal(said.amount)
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
        row.missing_since_offset,
        row.user_fields,
        len(row.postings),
        row.review,
        row.payload,
        row.schema,
        said.account_id,
        amount.value,
        amount.scale,
        said.currency,
        said.pending,
        _date(said.date),
        said.datetime,
        _date(said.authorized_date),
        said.name,
        said.merchant_name,
        said.merchant_entity_id,
        said.logo_url,
        said.category_primary,
        said.category_detailed,
        said.category_confidence,
    )


def transfer_values(transfer: Transfer) -> Values:
    """A row of `ledger_transfers`."""
    where = transfer.context
    return (
        transfer.own_id,
        transfer.number,
        where.user,
        transfer.debit,
        transfer.credit,
        Decimal(transfer.amount),
        transfer.currency,
        transfer.layer,
        transfer.reverses,
        pg_copy.read_date(transfer.effective),
        where.partition,
        where.offset,
        from_micros(where.known_at),
    )


def ledger_account_values(account: LedgerAccount) -> Values:
    """A row of `ledger_accounts`."""
    assert account.spec is not None
    return (account.id, *account.spec)


def ledger_balance_values(working: UnitOfWork) -> list[Values]:
    """What the batch adds to `ledger_balances`, in the order of the accounts' ids."""
    added: list[Values] = []
    for account in sorted(working.book.accounts.values(), key=lambda account: account.id):
        if account.pending_debits or account.pending_credits:
            debits, credits_ = Decimal(account.pending_debits), Decimal(account.pending_credits)
            added.append((account.id, book.PENDING, debits, credits_))
        if account.posted_debits or account.posted_credits:
            debits, credits_ = Decimal(account.posted_debits), Decimal(account.posted_credits)
            added.append((account.id, book.POSTED, debits, credits_))
    return added


def account_values(row: AccountRow) -> Values:
    """A row of `accounts`: the columns are of the source that spoke last."""
    if row.source == "cached":
        said_words, schema = row.cached_payload, row.cached_payload_schema
    else:
        said_words, schema = row.realtime_payload, row.realtime_payload_schema
    assert said_words is not None
    said: Account = codec.decoder(schema)(said_words, 0)[0]
    return (
        row.item_id,
        row.account_id,
        row.user,
        said.persistent_account_id,
        said.name,
        said.official_name,
        said.mask,
        said.type,
        said.subtype,
        said.currency,
        *_scaled(said.current),
        *_scaled(said.available),
        *_scaled(said.limit),
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
        *(row.continues or _NOBODY),
        *(row.continued_by or _NOBODY),
    )


def item_values(row: ItemRow) -> Values:
    """A row of `items`."""
    said = Item(row.item_id, "")
    if row.payload is not None:
        said = codec.decoder(row.schema)(row.payload, 0)[0]
    return (
        row.item_id,
        row.user,
        row.partition,
        said.institution_id,
        said.institution_name,
        said.state or None,
        said.code,
        said.reason,
        said.effective_at,
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


def copy_versions(versions: Iterable[TransactionVersion]) -> Iterator[bytes]:
    """Rows of `transaction_versions` for COPY."""
    raw, text, int8, moment_field = pg_copy.raw, pg_copy.text, pg_copy.int8, pg_copy.moment
    start = len(VERSION_COLUMNS).to_bytes(2, "big") + _ID
    for one in versions:
        yield b"".join(
            (
                start,
                one.own_id,
                pg_copy.int4(one.version),
                int8(one.user),
                text(one.item_id),
                text(one.transaction_id),
                raw(one.payload),
                pg_copy.int2(one.schema),
                pg_copy.jsonb(one.user_fields),
                moment_field(one.removed_at),
                raw(one.review),
                int8(one.changeset),
                moment_field(one.known_at),
                int8(one.until_changeset),
                moment_field(one.until),
            )
        )


def version_values(one: TransactionVersion) -> Values:
    """A row of `transaction_versions`."""
    return (
        one.own_id,
        one.version,
        one.user,
        one.item_id,
        one.transaction_id,
        one.payload,
        one.schema,
        one.user_fields,
        from_micros(one.removed_at),
        one.review,
        one.changeset,
        from_micros(one.known_at),
        one.until_changeset,
        from_micros(one.until),
    )


def account_version_values(one: AccountVersion) -> Values:
    """A row of `account_versions`."""
    return (*one[:-1], from_micros(one.known_at))


def link_values(one: TransactionMatch) -> Values:
    """A row of `transaction_matches`."""
    return (*one[:-1], from_micros(one.known_at))


def review_values(one: Review) -> Values:
    """A row of `reviews`."""
    return (
        one.id,
        one.user,
        one.item_id,
        one.own_id,
        one.candidates,
        one.reason,
        one.state,
        one.chosen,
        one.changeset,
        one.decided,
        from_micros(one.known_at),
        from_micros(one.decided_at),
    )


def changeset_values(folded: FoldedRecord, *, keeps_events: bool = True) -> Values:
    """A row of `changesets`. The redrive has the events of what it freed; there is nothing to keep for that itself."""
    place = folded.context
    kept = compress(folded.block) if keeps_events and folded.redriven_by is None else None
    return (
        place.partition,
        place.offset,
        place.changeset_id,
        folded.item_id,
        place.user,
        folded.kind,
        folded.type,
        _json(folded.cause),
        _json(folded.counts),
        _json(folded.not_effective),
        len(folded.net_events),
        hashlib.sha256(folded.block).digest(),
        kept,
        folded.redriven_by,
        from_micros(folded.produced_at),
        from_micros(place.known_at),
        folded.body_fingerprint,
    )


def compress(block: bytes) -> bytes:
    """A block of net events as the table keeps it."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(block)


def decompress(stored: bytes) -> bytes:
    """A block of net events as it was before `compressed`."""
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
