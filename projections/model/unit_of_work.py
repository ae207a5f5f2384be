"""The working set: what the fold knows and changes, from the first record of a batch to its last.

It is filled from the database (store.loader) and written back (store.writer); in between only the fold
touches it, in the order of the log, so how a log is cut into batches makes no difference.
"""

from typing import NamedTuple

from msgspec import Struct, field

from projections.model.book import Book, Posting
from projections.model.record_context import RecordContext
from schemas.log.gate import ItemGate

MERGED_PREFIX = "merged:"
"""Before the own id, in place of Plaid's id, of a row that turned out to be another one: an id that no bank gives."""


class Row(Struct, gc=False):
    """A transaction. Units: `known_at`, `enriched_at`, `removed_at` in microseconds since 1970, UTC.

    `columns` are the bank's payload as COPY fields; None where they are still those of the database. `missing_since_offset`
    is the offset of the restated history that does not name it, while that waits for a decision. `user_fields` is
    JSON in canonical form (ledger.override_rules). `postings` are what the ledger says of it while it counts: one,
    or one for each of its splits; none while it is removed or a review holds it.
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
        """Whether readers have it: the bank has it, and it is no repeat of another one."""
        return self.removed_at is None and self.review is None

    @property
    def is_merged(self) -> bool:
        """Whether it turned out to be another one, which goes on in its place."""
        return self.transaction_id.startswith(MERGED_PREFIX)


class TransactionVersion(NamedTuple):
    """What a transaction was until a changeset made it something else. Units: times in microseconds since 1970, UTC."""

    own_id: bytes
    version: int
    user: int
    item_id: str
    transaction_id: str
    payload: bytes
    schema: int
    user_fields: str | None
    removed_at: int | None
    review: bytes | None
    changeset: int
    known_at: int
    until_changeset: int
    until: int


class AccountVersion(NamedTuple):
    """What was reported of an account. Units: `known_at` in microseconds since 1970, UTC."""

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
    """Says that a Plaid id is a known transaction by a rule of ours, with its score (0 to 100) and the evidence."""

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

    `own_id` is held out of the ledger while it is open. `candidates` is JSON: a list of own id, score and evidence.
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

    `opened` is the offset of the changeset that posted its opening balance, `opening_transfers` how many transfers
    that took so far. `continues` is the older account that it goes on from, `continued_by` the younger one.
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
    source: str = "cached"
    version: int = 0
    last_changeset: int = 0
    known_at: int = 0
    opened: int | None = None
    opening_transfers: int = 0
    continues: AccountKey | None = None
    continued_by: AccountKey | None = None


class ItemRow(Struct):
    """An Item: the gate's state, what Plaid says about it, and its known transactions and accounts.

    `by_id` finds a transaction by the id that the bank uses now, `own_ids` says which own ids are in use. Both hold
    all of the Item where `is_complete`, else all that this batch can touch. `parts` are kept aside: id to offset
    and sealed value; `parts_stored` are those that the database has. `missing_rows` wait for a decision about the
    restated history with the id `missing_changeset_id`. `has_linked_items` says that another Item of the user reports, or reported,
    some of its accounts; `moved` are its ids of transactions that live on elsewhere, with their own ids. Edits of
    transactions that are not there wait in `waiting_edits`, by Plaid's id.
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
    def salt(self) -> bytes:
        """What tells own ids of this Item from those of another one with the same Plaid ids."""
        return self.item_id.encode()

    def add(self, row: Row) -> None:
        """Make a row findable."""
        self.by_id[row.transaction_id] = row
        self.own_ids.add(row.own_id)


class NetEvent(NamedTuple):
    """A net event: `entity` is what it is about (own id, account and source, Item), `data` its Avro bytes."""

    type: str
    schema: int
    entity: bytes
    data: bytes


class FoldedRecord(NamedTuple):
    """What an accepted record caused: a row of `changesets`. `block` holds its net events, encoded.

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
    """All that a batch knows and changes.

    `withheld_removals`: Item to what waits for a decision now, in payload; None where nothing does any more.
    """

    def __init__(self) -> None:
        self.items: dict[str, ItemRow] = {}
        self.book = Book()
        self.new: list[Row] = []
        self.changed: dict[bytes, Row] = {}
        self.changed_accounts: dict[tuple[str, str], AccountRow] = {}
        self.changed_items: dict[str, ItemRow] = {}
        self.folded: list[FoldedRecord] = []
        self.versions: list[TransactionVersion] = []
        self.account_versions: list[AccountVersion] = []
        self.matches: list[TransactionMatch] = []
        self.reviews: dict[bytes, Review] = {}
        self.changed_reviews: dict[bytes, Review] = {}
        self.withheld_removals: dict[str, str | None] = {}
