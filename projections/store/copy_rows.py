"""Encode many rows in the binary form of COPY: these loops run once a transaction and are measured in microseconds."""

import struct
from collections.abc import Iterable, Iterator

from projections.decode import transaction
from projections.model import pg_copy
from projections.model.book import Transfer
from projections.model.unit_of_work import Row, TransactionVersion
from projections.store import tables
from projections.store.rows import TRANSACTION_COLUMNS

_ID = pg_copy.length(16)


def _row_start(columns: Iterable[str]) -> bytes:
    """Return the number of columns and the length of an own id, which is the first column."""
    return len(tuple(columns)).to_bytes(2, "big") + _ID


_TRANSACTION_START = _row_start(TRANSACTION_COLUMNS)
_TRANSFER_START = _row_start(tables.column_names(tables.ledger_transfers))
_VERSION_START = _row_start(tables.column_names(tables.transaction_versions))
_counters = struct.Struct(">i?iiiiiqiqiq").pack
"""own_id_inherited, version, transfers, first_changeset, last_changeset, known_at: each after its length."""
_NO_USER_FIELDS = pg_copy.NULL + pg_copy.int2(1) + pg_copy.NULL
"""user_fields, active_transfers and review of a row without edits, splits or review."""
_number_and_user = struct.Struct(">iiiq").pack


def copy_transactions(changed: Iterable[Row]) -> Iterator[bytes]:
    """Yield rows of `transactions`, in the order of TRANSACTION_COLUMNS."""
    join, text, moment, length, counters = b"".join, pg_copy.text, pg_copy.moment, pg_copy.length, _counters
    null, int8, no_user_fields = pg_copy.NULL, pg_copy.int8, _NO_USER_FIELDS
    user, item_id, owner = None, None, b""
    schema, schema_field = None, b""
    for row in changed:
        if row.item_id is not item_id or row.user != user:
            user, item_id = row.user, row.item_id
            owner = pg_copy.int8(user) + text(item_id)
        if row.schema != schema:
            schema = row.schema
            schema_field = pg_copy.int2(schema)
        columns = row.columns
        if columns is None:
            columns = transaction.decode(row.schema, row.payload).columns
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
                null if row.enriched_at is None else moment(row.enriched_at),
                null if row.removed_at is None else moment(row.removed_at),
                length(len(row.payload)),
                row.payload,
                schema_field,
                no_user_fields
                if row.user_fields is None and row.review is None and len(row.postings) == 1
                else pg_copy.jsonb(row.user_fields) + pg_copy.int2(len(row.postings)) + pg_copy.raw(row.review),
                null if row.missing_since_offset is None else int8(row.missing_since_offset),
                columns,
            )
        )


def copy_transfers(transfers: Iterable[Transfer]) -> Iterator[bytes]:
    """Yield rows of `ledger_transfers`."""
    join, number_and_user, int4, null = b"".join, _number_and_user, pg_copy.int4, pg_copy.NULL
    kinds: dict[tuple[str, str], bytes] = {}
    context, log_fields = None, b""
    for transfer in transfers:
        if transfer.context is not context:
            context = transfer.context
            log_fields = int4(context.partition) + pg_copy.int8(context.offset) + pg_copy.moment(context.known_at)
        kind = kinds.get((transfer.currency, transfer.layer))
        if kind is None:
            kind = pg_copy.text(transfer.currency) + pg_copy.text(transfer.layer)
            kinds[transfer.currency, transfer.layer] = kind
        yield join(
            (
                _TRANSFER_START,
                transfer.own_id,
                number_and_user(4, transfer.number, 8, context.user),
                _ID,
                transfer.debit,
                _ID,
                transfer.credit,
                transfer.amount_field,
                kind,
                null if transfer.reverses is None else int4(transfer.reverses),
                transfer.effective,
                log_fields,
            )
        )


def copy_versions(versions: Iterable[TransactionVersion]) -> Iterator[bytes]:
    """Yield rows of `transaction_versions`."""
    raw, text, int8, moment = pg_copy.raw, pg_copy.text, pg_copy.int8, pg_copy.moment
    for row, until_changeset, until in versions:
        yield b"".join(
            (
                _VERSION_START,
                row.own_id,
                pg_copy.int4(row.version),
                int8(row.user),
                text(row.item_id),
                text(row.transaction_id),
                raw(row.payload),
                pg_copy.int2(row.schema),
                pg_copy.jsonb(row.user_fields),
                moment(row.removed_at),
                raw(row.review),
                int8(row.last_changeset),
                moment(row.known_at),
                int8(until_changeset),
                moment(until),
            )
        )
