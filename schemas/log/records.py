"""Records of the log as structs: one for each schema in avro/, fields in the schema's order. Pure."""

from msgspec import Struct, field


class Transaction(Struct, frozen=True, gc=False):
    """A transaction with the bank's values. Source: avro/transaction.v1.avsc.

    Units: `amount` is plain decimal text; positive leaves the account.
    """

    transaction_id: str
    account_id: str
    amount: str
    iso_currency_code: str | None
    unofficial_currency_code: str | None
    pending: bool
    pending_transaction_id: str | None
    date: str
    datetime: str | None = None
    authorized_date: str | None = None
    authorized_datetime: str | None = None
    name: str | None = None
    merchant_name: str | None = None
    merchant_entity_id: str | None = None
    original_description: str | None = None
    logo_url: str | None = None
    website: str | None = None
    category_primary: str | None = None
    category_detailed: str | None = None
    category_confidence: str | None = None
    category_version: str | None = None
    category_icon_url: str | None = None
    payment_channel: str | None = None
    transaction_code: str | None = None
    transaction_type: str | None = None
    merchant_category_code: str | None = None
    check_number: str | None = None
    account_owner: str | None = None
    location_json: str | None = None
    counterparties_json: str | None = None
    payment_meta_json: str | None = None
    extra_json: str | None = None

    @property
    def currency(self) -> str:
        """Return the currency's code, official or not; "XXX" (ISO 4217: no currency) where the bank named none."""
        return self.iso_currency_code or self.unofficial_currency_code or "XXX"


class Account(Struct, frozen=True, gc=False):
    """An account and its balances with the bank's values. Source: avro/account.v1.avsc."""

    account_id: str
    persistent_account_id: str | None
    name: str | None
    official_name: str | None
    mask: str | None
    type: str
    subtype: str | None
    holder_category: str | None = None
    verification_status: str | None = None
    current: str | None = None
    available: str | None = None
    limit: str | None = None
    iso_currency_code: str | None = None
    unofficial_currency_code: str | None = None
    last_updated_datetime: str | None = None
    extra_json: str | None = None

    @property
    def currency(self) -> str:
        """Return the currency's code, official or not; "XXX" (ISO 4217: no currency) where the bank named none."""
        return self.iso_currency_code or self.unofficial_currency_code or "XXX"


class Removal(Struct, frozen=True, gc=False):
    """A transaction that the bank removed. Source: avro/removal.v1.avsc."""

    transaction_id: str
    account_id: str | None = None


class Item(Struct, frozen=True, gc=False):
    """An Item and its state. Source: avro/item.v1.avsc."""

    item_id: str
    state: str
    code: str | None = None
    reason: str | None = None
    effective_at: str | None = None
    institution_id: str | None = None
    institution_name: str | None = None
    history_status: str | None = None
    extra_json: str | None = None


class History(Struct, frozen=True):
    """Accounts and dates that a full resync covers. Source: avro/history.v2.avsc.

    Units: `since`, `until` are ISO dates, both within the window; None has no bound on that side.
    """

    account_ids: list[str]
    since: str | None
    until: str | None
    complete: bool
    removals_permille_max: int = 1000
    incomplete_because: str | None = None


class DeadLetter(Struct, frozen=True):
    """A record that could not be processed, with its sealed original. Source: avro/dead_letter.v1.avsc.

    Units: `at` in microseconds since 1970, UTC.
    """

    stage: str
    topic: str
    partition: int
    source_offset: int | None
    item_id: str | None
    reason: str
    attempts: int
    code_version: str
    at: int
    key: bytes | None = None
    value: bytes | None = None


class Edit(Struct, frozen=True, gc=False):
    """A user's edit of a transaction. Source: avro/edit.v1.avsc."""

    own_id: str
    transaction_id: str
    fields_json: str


class Decision(Struct, frozen=True, gc=False):
    """A person's decision. Source: avro/decision.v1.avsc."""

    subject: str
    decision: str
    by: str | None = None
    detail_json: str | None = None


class Cause(Struct, frozen=True):
    """Cause of a changeset, up to the webhook and Plaid's own request ids."""

    kind: str
    webhook_partition: int | None = None
    webhook_offset: int | None = None
    webhook_received_at: int | None = None
    request_ids: list[str] = field(default_factory=list)
    by: str | None = None


class Head(Struct, frozen=True):
    """The clear part of a changeset. Source: avro/head.v1.avsc.

    Units: `at`, `fetch_started_at` in microseconds since 1970, UTC.
    """

    id: bytes
    kind: str
    type: str
    parent: bytes | None
    item_id: str | None
    user: int
    at: int
    cause: Cause
    key_generation: int
    fetch_started_at: int | None = None
    base_cursor: str | None = None
    next_cursor: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    item_state: str | None = None
    item_code: str | None = None
    history_status: str | None = None
    fingerprints: dict[str, bytes] = field(default_factory=dict)
    hints_until: int | None = None
    body_fingerprint: bytes | None = None
    parts: list[bytes] = field(default_factory=list)
    first_offset: int | None = None


class Webhook(Struct, frozen=True):
    """A webhook as it was received. Source: avro/webhook.v1.avsc.

    Units: `received_at` in microseconds since 1970, UTC.
    """

    received_at: int
    body: bytes | None
    body_sha256: bytes
    jwt: str
    jwk_json: str
    stale: bool = False
