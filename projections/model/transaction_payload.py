"""A transaction as the bank reported it, decoded once for the fold and for COPY."""

from msgspec import Struct


class Amount(Struct, frozen=True, gc=False):
    """An amount: COPY fields of value, scale and currency, and the ledger's integer as number and field."""

    columns: bytes
    is_outflow: bool
    ledger: int
    ledger_field: bytes


class TransactionPayload(Struct, frozen=True, gc=False):
    """A reported transaction.

    `data` are its Avro bytes under schema number `schema`; `columns` are the COPY fields of decode.transaction.COLUMNS.
    """

    transaction_id: str
    pending_transaction_id: str | None
    is_pending: bool
    account: bytes
    currency: bytes
    amount: Amount
    category: bytes
    date: bytes
    is_enriched: bool
    columns: bytes
    data: bytes
    schema: int
