"""Unit of work: the state that the fold reads and changes, from the first record of a batch to its last.

store.loader fills it from the database and store.writer writes it back; in between only the fold changes it, in the
order of the log, so the cut of a log into batches makes no difference.
"""

from copy import copy
from typing import NamedTuple

from msgspec import Struct, field

from projections.model.book import Book, Posting
from projections.model.record_context import RecordContext
from schemas.log.gate import ItemGate

CACHED, REALTIME = "cached", "realtime"
"""Sources of a balance."""

MERGED_PREFIX = "merged:"
"""Before the own id, in place of Plaid's id, of a row that was merged into another one: an id that no bank gives."""


class Row(Struct, gc=False):
    """A transaction. Units: `known_at`, `enriched_at`, `removed_at` in microseconds since 1970, UTC.

    `columns` are the COPY fields of the bank's payload; None where they are still those of the database.
    `missing_since_offset` is the offset of the full resync that does not name the row, while that waits for a decision.
    `user_fields` is JSON in canonical form (ledger.user_field_values). `postings` are one, or one for each split; none
    while the row is removed or a review withholds it.
    """

    own_id: bytes
    item_id: str
    user: int
    transaction_id: str
    own_id_inherited: bool
    payload: bytes
    schema: int
    columns: bytes | None
    postings: tuple[Posting, ...]
    first_changeset: int
    last_changeset: int
    known_at: int
    enriched_at: int | None = None
    removed_at: int | None = None
    version: int = 0
    transfers: int = 0
    user_fields: str | None = None
    missing_since_offset: int | None = None
    review: bytes | None = None
    is_new: bool = True

    @property
    def is_shown(self) -> bool:
        """True where readers see it: the bank has it, and no review withholds it."""
        return self.removed_at is None and self.review is None

    @property
    def is_merged(self) -> bool:
        """True where another row goes on in its place."""
        return self.transaction_id.startswith(MERGED_PREFIX)


Touched = dict[bytes, tuple[Row, Row | None]]
"""Own id to row and its state before the record; None for a row that the record inserted."""


def track(row: Row, touched: Touched) -> None:
    """Copy a row into `touched` ahead of its first change by the record."""
    if row.own_id not in touched:
        touched[row.own_id] = (row, copy(row))


class TransactionVersion(NamedTuple):
    """A former state of a transaction, and what ended it: offset, and time in microseconds since 1970, UTC."""

    row: Row
    until_changeset: int
    until: int


class AccountVersion(NamedTuple):
    """A reported state of an account. Units: `known_at` in microseconds since 1970, UTC."""

    item_id: str
    account_id: str
    version: int
    user: int
    source: str
    payload: bytes
    schema: int
    changeset: int
    known_at: int


class TransactionMatch(NamedTuple):
    """A Plaid id matched with a known transaction by a rule, with its score (0 to 100) and the evidence."""

    item_id: str
    transaction_id: str
    own_id: bytes
    user: int
    rule: str
    score: int
    evidence: str
    changeset: int
    known_at: int


class Review(Struct):
    """A question to a person: is this transaction one of those that are known?

    `own_id` stays out of the ledger while a candidate counts. `candidates` is JSON: own ids with score and evidence.
    """

    id: bytes
    user: int
    item_id: str
    own_id: bytes
    candidates: str
    reason: str
    changeset: int
    known_at: int
    state: str = "open"
    chosen: bytes | None = None
    decided: int | None = None
    decided_at: int | None = None


AccountKey = tuple[str, str]
"""Item and account."""


class AccountRow(Struct, gc=False):
    """An account with its last payload of each source. Units: times in microseconds since 1970, UTC.

    `opened` is the offset of the changeset that posted its opening balance, `opening_transfers` the number of its
    opening transfers so far. `continues` is the older account that it goes on from, `continued_by` the younger one.
    """

    account_id: str
    item_id: str
    user: int
    cached_payload: bytes | None = None
    cached_payload_schema: int = 0
    cached_at: int | None = None
    realtime_payload: bytes | None = None
    realtime_payload_schema: int = 0
    realtime_at: int | None = None
    source: str = CACHED
    version: int = 0
    last_changeset: int = 0
    known_at: int = 0
    opened: int | None = None
    opening_transfers: int = 0
    continues: AccountKey | None = None
    continued_by: AccountKey | None = None

    def reported(self, source: str) -> tuple[bytes | None, int]:
        """Return the last payload of a source, and its schema."""
        if source == CACHED:
            return self.cached_payload, self.cached_payload_schema
        return self.realtime_payload, self.realtime_payload_schema


class ItemRow(Struct):
    """An Item: the gate's state, Plaid's payload, and its known transactions and accounts.

    `by_id` has a transaction by the id that the bank uses now, `own_ids` the own ids in use. Both hold all of the Item
    where `is_complete`, else all that this batch can touch. `chunks` wait for their record: id to offset and sealed
    value; `stored_chunks` are those in the database. `missing_rows` rows wait for a decision about the full resync
    `missing_changeset_id`. `has_linked_items`: another Item of the user reports, or reported, some of its accounts.
    `moved` are its ids of transactions that go on in another Item, with their own ids. `waiting_edits` are edits of
    unknown transactions, by Plaid's id.
    """

    item_id: str
    user: int
    partition: int
    gate: ItemGate = ItemGate()
    head_offset: int | None = None
    payload: bytes | None = None
    schema: int = 0
    history_status: str | None = None
    linked_at: int | None = None
    unlinked_at: int | None = None
    last_sync_at: int | None = None
    known_at: int = 0
    transaction_rows: int = 0
    missing_rows: int = 0
    missing_changeset_id: bytes | None = None
    has_linked_items: bool = False
    waiting_edits: dict[str, str] = field(default_factory=dict)
    moved: dict[str, bytes] = field(default_factory=dict)
    is_complete: bool = False
    by_id: dict[str, Row] = field(default_factory=dict)
    own_ids: set[bytes] = field(default_factory=set)
    accounts: dict[str, AccountRow] = field(default_factory=dict)
    chunks: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    stored_chunks: frozenset[bytes] = frozenset()

    @property
    def has_linked_accounts(self) -> bool:
        """True where an account of the Item has, or had, another id too."""
        return self.has_linked_items or any(
            account.continues or account.continued_by for account in self.accounts.values()
        )

    def add(self, row: Row) -> None:
        """Index a row by its ids."""
        self.by_id[row.transaction_id] = row
        self.own_ids.add(row.own_id)


class NetEvent(NamedTuple):
    """A net event: `entity` is its subject (own id, account and source, or Item), `data` its Avro bytes."""

    type: str
    schema: int
    entity: bytes
    data: bytes


class FoldedRecord(NamedTuple):
    """The effect of an accepted record: a row of `changesets`. `block` holds its net events, encoded.

    `redriven_by` is the offset of the redrive that has the net events, where the record was withheld.
    """

    context: RecordContext
    item_id: str | None
    kind: str
    type: str
    cause: dict[str, object]
    produced_at: int
    counts: dict[str, int]
    not_effective: dict[str, int]
    net_events: list[NetEvent]
    block: bytes
    body_fingerprint: bytes | None = None
    redriven_by: int | None = None


class UnitOfWork:
    """State and changes of one batch.

    `withheld_removals`: Item to the text of its open decision about missing rows; None where none waits.
    """

    def __init__(self) -> None:
        self.items: dict[str, ItemRow] = {}
        self.book = Book()
        self.new: list[Row] = []
        self.changed: dict[bytes, Row] = {}
        self.changed_accounts: dict[AccountKey, AccountRow] = {}
        self.changed_items: dict[str, ItemRow] = {}
        self.folded: list[FoldedRecord] = []
        self.versions: list[TransactionVersion] = []
        self.account_versions: list[AccountVersion] = []
        self.matches: list[TransactionMatch] = []
        self.reviews: dict[bytes, Review] = {}
        self.changed_reviews: dict[bytes, Review] = {}
        self.withheld_removals: dict[str, str | None] = {}

    def mark_changed(self, row: Row) -> None:
        """Write a row back, unless it is new and written as such."""
        if not row.is_new:
            self.changed[row.own_id] = row

    def clear_missing(self, item: ItemRow, row: Row) -> None:
        """Clear a row's missing mark: the bank reported it, it was removed, or a person decided."""
        row.missing_since_offset = None
        self.mark_changed(row)
        item.missing_rows -= 1
        self.changed_items[item.item_id] = item
        if not item.missing_rows:
            item.missing_changeset_id = None
            self.withheld_removals[item.item_id] = None

    def rows_by_own_id(self, user: int) -> dict[bytes, Row]:
        """Return all rows of a user by own id."""
        return {row.own_id: row for item in self.items.values() if item.user == user for row in item.by_id.values()}
