"""Declare the derived tables of one projection version: each can be dropped and filled again from the log.

Units: amounts are `value` * 10 ** -`scale`; ledger amounts are integers at their account's `scale`.
Locks: a projector locks the rows of `positions` of its partitions first, in order, and then owns all rows of the
users of those partitions; so no statement here needs another lock or a retry of its own.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from runtime.postgres.pool import LIVE_SCHEMA
from runtime.postgres.pool import READS_SCHEMA as READS_SCHEMA

FOLD = 2
"""Number of the fold: it rises when the same log gives other rows or net events."""
SCHEMA, NEXT, OLD = LIVE_SCHEMA, "projection_next", "projection_old"
"""Schemas of the live version, of the one that a rebuild fills, and of the one that was live before: a swap of
versions renames them. A session's search_path resolves the tables' unqualified names in one of them."""
metadata = MetaData(schema=SCHEMA)

version = Table(
    "version",
    MetaData(schema=SCHEMA),
    Column("number", Integer, primary_key=True, autoincrement=False, comment="1 for the first, one more a rebuild"),
    Column("fold", Integer, nullable=False, comment="FOLD of the code that fills these tables"),
    Column("made_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
)
"""One row: the version of a schema's tables. It moves with the schema when that is renamed, and is in no digest."""

_EMPTY = text("'{}'::jsonb")


def column_names(table: Table) -> tuple[str, ...]:
    """Return the names of a table's columns, in order."""
    return tuple(column.name for column in table.columns)


def _moment(name: str, *, nullable: bool = True, comment: str | None = None) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=nullable, comment=comment)


def _scaled(name: str) -> tuple[Column[Any], Column[Any], Column[Any]]:
    """Return the columns of an amount: value, scale, and the bank's own text."""
    return Column(f"{name}_value", BigInteger), Column(f"{name}_scale", SmallInteger), Column(name, Text)


items = Table(
    "items",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("user_number", BigInteger, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("institution_id", Text),
    Column("institution_name", Text),
    Column("state", Text),
    Column("code", Text, comment="Plaid's error_code or webhook_code behind the state"),
    Column("reason", Text),
    Column("effective_at", Text, comment="as Plaid wrote it"),
    Column("history_status", Text),
    Column("payload", LargeBinary, comment="last payload about the Item, Avro"),
    Column("payload_schema", SmallInteger),
    Column("head", LargeBinary, comment="gate: id of the last accepted chained record"),
    Column("head_offset", BigInteger),
    Column("unlinked", Boolean, nullable=False, server_default="false", comment="gate: no chained record counts now"),
    Column("transaction_rows", BigInteger, nullable=False, server_default="0", comment="0: no look-up of known rows"),
    _moment("linked_at", comment="known_at of the link"),
    _moment("unlinked_at"),
    _moment("last_sync_at", comment="known_at of the last accepted sync"),
    # Transactions that a full resync does not name and that wait for a decision.
    Column("missing_rows", Integer, nullable=False, server_default="0"),
    Column("missing_changeset_id", LargeBinary, comment="id of that changeset: the subject of the decision"),
    # Another Item of the user reports, or reported, some of its accounts: its rows may belong to that one.
    Column("has_linked_items", Boolean, nullable=False, server_default="false"),
    Column("waiting_edits", JSONB, comment="by Plaid id: edits of transactions that do not exist yet"),
    _moment("known_at", nullable=False),
    Index("items_user", "user_number"),  # read.queries.items, store.loader.load_rows
)

accounts = Table(
    "accounts",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("account_id", Text, primary_key=True, comment="Plaid's ids are scoped to the Item"),
    Column("user_number", BigInteger, nullable=False),
    Column("persistent_account_id", Text),
    Column("name", Text),
    Column("official_name", Text),
    Column("mask", Text),
    Column("type", Text, nullable=False),
    Column("subtype", Text),
    Column("currency", Text, nullable=False),
    *_scaled("current"),
    *_scaled("available"),
    *_scaled("limit"),
    Column("source", Text, nullable=False, comment="of the columns above: cached or realtime, whichever came last"),
    Column("cached_payload", LargeBinary, comment="last payload of a sync, Avro"),
    Column("cached_payload_schema", SmallInteger, nullable=False, server_default="0"),
    _moment("cached_at", comment="known_at of the last sync with another payload"),
    Column("realtime_payload", LargeBinary, comment="last payload of a real-time balance, Avro"),
    Column("realtime_payload_schema", SmallInteger, nullable=False, server_default="0"),
    _moment("realtime_at"),
    Column("version", Integer, nullable=False, comment="number of balance.updated events"),
    Column("last_changeset", BigInteger, nullable=False, comment="offset"),
    _moment("known_at", nullable=False),
    Column("opened", BigInteger, comment="offset of the changeset that posted its opening balance"),
    Column("opening_transfers", Integer, nullable=False, server_default="0", comment="transfers of its opening so far"),
    Column("continues_item", Text, comment="Item of the older account that this one goes on from"),
    Column("continues_account", Text),
    Column("continued_by_item", Text, comment="Item of the younger account that goes on from this one"),
    Column("continued_by_account", Text),
    Index("accounts_user", "user_number"),  # read.queries.accounts
    Index("accounts_account", "account_id"),  # read.resolve_id.explain_id: by Plaid's id alone
)

transactions = Table(
    "transactions",
    metadata,
    Column("own_id", LargeBinary, primary_key=True, comment="16 bytes, outlives pending to posted"),
    Column("user_number", BigInteger, nullable=False),
    Column("item_id", Text, nullable=False),
    Column("transaction_id", Text, nullable=False, comment="Plaid's current id"),
    Column("own_id_inherited", Boolean, nullable=False, comment="own_id is not derived from transaction_id alone"),
    Column("version", Integer, nullable=False, comment="number of events so far"),
    Column("transfers", Integer, nullable=False, comment="number of ledger transfers so far"),
    Column("first_changeset", BigInteger, nullable=False, comment="offset"),
    Column("last_changeset", BigInteger, nullable=False, comment="offset"),
    _moment("known_at", nullable=False),
    _moment("enriched_at", comment="known_at of the last change of category, merchant or logo"),
    _moment("removed_at", comment="known_at of the removal; null while the bank has it"),
    Column("payload", LargeBinary, nullable=False, comment="the bank's last payload, Avro"),
    Column("payload_schema", SmallInteger, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("amount_value", BigInteger, nullable=False, comment="positive leaves the account"),
    Column("amount_scale", SmallInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("pending", Boolean, nullable=False),
    Column("date", Date, nullable=False),
    Column("datetime", Text, comment="as Plaid wrote it"),
    Column("authorized_date", Date),
    Column("name", Text),
    Column("merchant_name", Text),
    Column("merchant_entity_id", Text),
    Column("logo_url", Text),
    Column("category_primary", Text),
    Column("category_detailed", Text),
    Column("category_confidence", Text),
    Column(
        "user_fields", JSONB, comment="field to {value, at}: at is the offset of the edit; no bank update changes it"
    ),
    Column("active_transfers", SmallInteger, nullable=False, server_default="1", comment="last transfers, which count"),
    Column("review", LargeBinary, comment="open review, which withholds it from the ledger"),
    # Null again once the bank names it.
    Column("missing_since_offset", BigInteger, comment="offset of the full resync that does not name it"),
    # read.queries.transactions, read.as_of.transactions: newest first; equal dates are sorted by own_id. Also
    # store.loader.load_rows: rows in a window of dates.
    Index("transactions_user_date", "user_number", text("date DESC")),
    # read.queries.missing, store.loader.load_rows: rows that a decision about a full resync concerns.
    Index("transactions_missing", "item_id", postgresql_where=text("missing_since_offset IS NOT NULL")),
    # store.loader.load_rows, read.resolve_id.explain_id: rows whose own_id is not computed from Plaid's id.
    Index(
        "transactions_inherited", "item_id", "transaction_id", unique=True, postgresql_where=text("own_id_inherited")
    ),
)

transaction_versions = Table(
    "transaction_versions",
    metadata,
    Column("own_id", LargeBinary, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("user_number", BigInteger, nullable=False),
    Column("item_id", Text, nullable=False),
    Column("transaction_id", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False, comment="the bank's payload, Avro"),
    Column("payload_schema", SmallInteger, nullable=False),
    Column("user_fields", JSONB),
    _moment("removed_at"),
    Column("review", LargeBinary),
    Column("changeset", BigInteger, nullable=False, comment="offset of what made this version"),
    _moment("known_at", nullable=False),
    Column("until_changeset", BigInteger, nullable=False, comment="offset of what made the next one"),
    _moment("until", nullable=False, comment="known_at of the next one"),
    Index("transaction_versions_user", "user_number", "until"),  # read.as_of.transactions: versions that ended since
)

account_versions = Table(
    "account_versions",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("account_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("user_number", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False, comment="the bank's payload, Avro"),
    Column("payload_schema", SmallInteger, nullable=False),
    Column("changeset", BigInteger, nullable=False, comment="offset"),
    _moment("known_at", nullable=False),
)

transaction_matches = Table(
    "transaction_matches",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("transaction_id", Text, primary_key=True, comment="Plaid's id"),
    Column("own_id", LargeBinary, nullable=False, comment="the transaction that it is"),
    Column("user_number", BigInteger, nullable=False),
    Column("rule", Text, nullable=False, comment="of matching; left: the id leads nowhere any more"),
    Column("score", SmallInteger, nullable=False, comment="0 to 100"),
    Column("evidence", JSONB, nullable=False),
    Column("changeset", BigInteger, nullable=False, comment="offset"),
    _moment("known_at", nullable=False),
    Index("transaction_matches_own", "own_id"),  # read.explain.transaction, store.loader.load_rows
)

reviews = Table(
    "reviews",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    Column("user_number", BigInteger, nullable=False),
    Column("item_id", Text, nullable=False),
    Column("own_id", LargeBinary, nullable=False, comment="the younger transaction, withheld while a candidate counts"),
    Column("candidates", JSONB, nullable=False, comment="own ids that it may be, with score and evidence"),
    Column("reason", Text, nullable=False),
    Column("state", Text, nullable=False, comment="open, approved, rejected, settled"),
    Column("chosen", LargeBinary, comment="own id that it turned out to be"),
    Column("changeset", BigInteger, nullable=False, comment="offset of what opened it"),
    Column("decided", BigInteger, comment="offset of what ended it"),
    _moment("known_at", nullable=False),
    _moment("decided_at"),
    # read.reviews.list_open, store.gate_state.read_gate_state: reviews that wait for a user's decision.
    Index("reviews_open", "user_number", postgresql_where=text("state = 'open'")),
)

ledger_accounts = Table(
    "ledger_accounts",
    metadata,
    Column("id", LargeBinary, primary_key=True, comment="schemas.ids.ledger_account_id"),
    Column("user_number", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("reference", Text, nullable=False, comment="bank: account_id; category: its primary name"),
    Column("currency", Text, nullable=False),
    Column("scale", SmallInteger, nullable=False, comment="decimals of all its amounts"),
    CheckConstraint("kind IN ('bank', 'category', 'equity')", name="ledger_accounts_kind"),
    Index("ledger_accounts_user", "user_number"),  # read.ledger_reports.balances, store.loader.load_rows
)

ledger_transfers = Table(
    "ledger_transfers",
    metadata,
    Column("own_id", LargeBinary, primary_key=True),
    Column("number", Integer, primary_key=True, comment="1 for the first of its transaction"),
    Column("user_number", BigInteger, nullable=False),
    Column("debit", LargeBinary, nullable=False, comment="ledger account that receives"),
    Column("credit", LargeBinary, nullable=False, comment="ledger account that gives"),
    Column("amount", Numeric(38, 0), nullable=False, comment="at the accounts' scale, never negative"),
    Column("currency", Text, nullable=False),
    Column("layer", Text, nullable=False, comment="pending or posted"),
    Column("reverses", Integer, comment="number of the transfer that this one takes back"),
    Column("effective", Date, nullable=False, comment="the transaction's date"),
    Column("partition", Integer, nullable=False),
    Column("changeset", BigInteger, nullable=False, comment="offset"),
    _moment("known_at", nullable=False),
)

ledger_balances = Table(
    "ledger_balances",
    metadata,
    Column("account", LargeBinary, primary_key=True, comment="ledger account"),
    Column("layer", Text, primary_key=True),
    # Without a precision: a sum of amounts of 38 digits has more, and must not be refused.
    Column("debits", Numeric, nullable=False),
    Column("credits", Numeric, nullable=False),
)

changesets = Table(
    "changesets",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("source_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("id", LargeBinary, nullable=False, unique=True, comment="look-up of accepted free records"),
    Column("item_id", Text),
    Column("user_number", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("cause", JSONB, nullable=False),
    Column("counts", JSONB, nullable=False, server_default=_EMPTY, comment="events in the record, by type"),
    Column("not_effective", JSONB, nullable=False, server_default=_EMPTY, comment="events without effect yet, by type"),
    Column("net_events", Integer, nullable=False),
    Column("digest", LargeBinary, nullable=False, comment="SHA-256 of the block of net events"),
    Column("events", LargeBinary, comment="net events as published: block of events.v1, zstd; null once expired"),
    Column("redriven_by", BigInteger, comment="withheld and folded later: offset of the redrive, which has its events"),
    _moment("produced_at", nullable=False, comment="when the record was made"),
    _moment("known_at", nullable=False),
    Column("body_fingerprint", LargeBinary, comment="free records: keyed fingerprint of the request's body"),
    # read.queries.newest: a user's last offset.
    Index("changesets_user", "user_number", "source_offset"),
    Index("changesets_item", "item_id", "source_offset"),  # read.queries.changesets: sync history
)

positions = Table(
    "positions",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("position", BigInteger, nullable=False, comment="next offset to read"),
    Column("last_checksum", LargeBinary, comment="SHA-256 of the value before it"),
    _moment("known_at", comment="of the record before it; later records are never earlier"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("id", LargeBinary, primary_key=True),
    Column("source_offset", BigInteger, nullable=False),
    Column("value", LargeBinary, nullable=False, comment="the record, sealed"),
)

withheld = Table(
    "withheld",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("source_offset", BigInteger, primary_key=True),
    Column("value", LargeBinary, nullable=False, comment="the record, sealed"),
)
