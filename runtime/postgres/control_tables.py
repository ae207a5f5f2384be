"""Tables of schema `tartan`, primary and operational; derived tables are in projections.store.tables.

Primary: users, user_keys, credentials, quarantines. All others are operational. Locks are taken in the order positions,
users, user_keys, credentials, sync_state, hints, heads. The comment of an index names its query.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from runtime.postgres.pool import CONTROL_SCHEMA

metadata = MetaData(schema=CONTROL_SCHEMA)


def _moment(name: str, *, nullable: bool = True, now: bool = False) -> Column[object]:
    default = text("clock_timestamp()") if now else None
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=default)


def _json(name: str, default: str = "{}", comment: str | None = None) -> Column[object]:
    return Column(name, JSONB, nullable=False, server_default=default, comment=comment)


users = Table(
    "users",
    metadata,
    Column("user_number", BigInteger, primary_key=True, autoincrement=False, comment="random 63-bit, stands in topics"),
    Column("tenant", Text, nullable=False),
    Column("user_id", Text, nullable=False, comment="the application's own id of the user"),
    _moment("created_at", nullable=False, now=True),
    UniqueConstraint("tenant", "user_id", name="users_tenant_user_id"),  # users.keys.find
)

user_keys = Table(
    "user_keys",
    metadata,
    Column("user_number", BigInteger, primary_key=True, autoincrement=False),
    Column("generation", Integer, nullable=False),
    Column("wrapped", LargeBinary, comment="data key under the key-encryption key; null once destroyed"),
    Column("state", Text, nullable=False),
    _moment("created_at", nullable=False, now=True),
    _moment("destroyed_at"),
    # A destroyed key stays as a tombstone and is never created again.
    CheckConstraint("(state = 'active') = (wrapped IS NOT NULL)", name="user_keys_active_or_destroyed"),
)

credentials = Table(
    "credentials",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("user_number", BigInteger, nullable=False),
    Column("institution_id", Text),
    Column("institution_name", Text),
    Column("sealed_token", LargeBinary, comment="access token bound to the Item; null once unlinked"),
    _moment("created_at", nullable=False, now=True),
    _moment("unlinked_at"),
    Index("credentials_user", "user_number"),  # an erasure: streams.storage.consumer_transactions
)

sync_state = Table(
    "sync_state",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("user_number", BigInteger, nullable=False),
    Column("partition", Integer, nullable=False, comment="of changesets, by the user number's key"),
    Column("institution_id", Text),
    Column(
        "lane", SmallInteger, nullable=False, server_default="3", comment="0 webhook 1 manual 2 schedule 3 backfill"
    ),
    Column(
        "generation", BigInteger, nullable=False, server_default="1", comment="raised by each mark; dirty while > done"
    ),
    Column("done_generation", BigInteger, nullable=False, server_default="0"),
    _moment("due_at"),
    _moment("not_before"),  # not claimed earlier, in spite of marks: a webhook does not end Plaid's limits
    Column("attempts", Integer, nullable=False, server_default="0", comment="failures in a row"),
    # Apart from attempts: an Item whose history is not ready has not failed, yet each wait is longer.
    Column("not_ready", Integer, nullable=False, server_default="0", comment="answers in a row: history not ready"),
    Column("lease_token", LargeBinary, comment="random; whoever has it may work"),
    _moment("lease_until"),
    # A process ends the leases of its dead predecessor at start, so its Items do not wait for them.
    Column("lease_holder", Text, comment="instance id of the process that has the lease"),
    Column("wait_offset", BigInteger, comment="not claimed before follow_heads has read this offset"),
    _json("cause", '{"kind": "operator"}', comment="of the latest mark: schemas.log.records.Cause"),
    Column("unlink_requested", Boolean, nullable=False, server_default="false"),
    Column("accounts_wanted", Boolean, nullable=False, server_default="true", comment="/accounts/get is due"),
    _moment("accounts_at"),
    Column("refresh_wanted", Boolean, nullable=False, server_default="false", comment="/transactions/refresh is due"),
    # The last full resync lacked an account, so it concluded no removals yet.
    Column("history_incomplete", Boolean, nullable=False, server_default="false"),
    _moment("refreshed_at"),  # the last /transactions/refresh
    _moment("bank_updated_at"),  # Plaid's last successful read of the bank, by /item/get
    _moment("bank_observed_at"),  # the last /item/get
    _moment("swept_at"),  # the last comparison of webhooks with those that Plaid sent
    _moment("last_webhook_at"),
    _moment("last_synced_at"),
    _moment("last_attempt_at"),
    Column("last_error", JSONB),
    Column(
        "stopped",
        Text,
        comment="why nothing is scheduled: login_required, revoked, gone, refused, quarantined, erased, unlinked",
    ),
    _moment("created_at", nullable=False, now=True),
    # leases.claim: within each tenant, each lane by age. The wait for a rate limit or a bank is in not_before and so in
    # ready_at: Items that wait are not read again and again.
    Column(
        "ready_at",
        DateTime(timezone=True),
        Computed("CASE WHEN due_at IS NOT NULL THEN greatest(due_at, not_before) END", persisted=True),
        comment="when the Item can be claimed; null where it is not due",
    ),
    Index("sync_state_ready", "tenant", "lane", "ready_at", postgresql_where=text("ready_at IS NOT NULL")),
    Index("sync_state_sweep", "swept_at"),  # streams.webhooks.sweep: the longest unseen first
    Index("sync_state_institution", "institution_id"),  # breakers.failed, answered, probe
    Index("sync_state_idle", "last_synced_at", postgresql_where=text("due_at IS NULL")),  # enqueue.mark_scheduled
    Index("sync_state_user", "user_number"),  # an erasure: streams.storage.consumer_transactions
)

hints = Table(
    "hints",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("webhook_offset", BigInteger, primary_key=True, comment="all webhooks of an Item are in one partition"),
    Column("webhook_partition", Integer, nullable=False),
    Column("code", Text, nullable=False, comment="webhook_code"),
    _json("fields"),
    _moment("received_at", nullable=False),
)

repeats = Table(
    "repeats",
    metadata,
    Column("key", LargeBinary, primary_key=True, comment="SHA-256 of key id, iat and body hash"),
    _moment("observed_at", nullable=False),
    Index("repeats_observed_at", "observed_at"),  # enqueue.purge
)

heads = Table(
    "heads",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("user_number", BigInteger, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("head", LargeBinary, nullable=False, comment="id of the last accepted chained record"),
    Column("head_offset", BigInteger, nullable=False),
    Column("head_at", DateTime(timezone=True), nullable=False, comment="the record's own time"),
    Column("unlinked", Boolean, nullable=False, server_default="false"),
    Column("cursor", Text),
    Column("state", Text),
    Column("code", Text),
    Column("history_status", Text),
    _json("fingerprints", comment="keyed pseudonym of an account to hex fingerprint"),
    Column("hints_until", BigInteger),
)

positions = Table(
    "positions",
    metadata,
    Column("reader", Text, primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("position", BigInteger, nullable=False, comment="first offset not dealt with"),
    Column("last_checksum", LargeBinary, comment="SHA-256 of the value before it"),
)

published_checkpoints = Table(
    "published_checkpoints",
    metadata,
    Column("partition", Integer, primary_key=True),
    Column(
        "published", BigInteger, nullable=False, comment="all events of changesets below this offset were acknowledged"
    ),
)

held_topics = Table(
    "held_topics",
    metadata,
    # While `tartan republish` fills this partition of a topic, its publisher sends nothing there.
    Column("topic", Text, primary_key=True, comment="without prefix"),
    Column("partition", Integer, primary_key=True),
    Column("since", BigInteger, nullable=False, comment="position in changesets when it was held"),
    Column("first_offset", BigInteger, comment="in the topic: where the filling began; null until it did"),
)

quarantines = Table(
    "quarantines",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("first_offset", BigInteger, primary_key=True, comment="-1: streams could not make a record"),
    Column("partition", Integer, nullable=False),
    Column("redrive_offset", BigInteger),
    Column("reason", Text, nullable=False),
    Column("reader", Text, nullable=False),
    _moment("quarantined_at", nullable=False, now=True),
)

sync_runs = Table(
    "sync_runs",
    metadata,
    Column("run", BigInteger, primary_key=True, autoincrement=True),
    Column("item_id", Text, nullable=False),
    _moment("started_at", nullable=False),
    Column("duration_s", Double, nullable=False),
    Column("cause", Text, nullable=False),
    Column("pages", Integer, nullable=False, server_default="0"),
    Column("added", Integer, nullable=False, server_default="0"),
    Column("modified", Integer, nullable=False, server_default="0"),
    Column("removed", Integer, nullable=False, server_default="0"),
    Column(
        "outcome", Text, nullable=False, comment="appended, unchanged, not_ready, limited, stopped, unlinked, failed"
    ),
    Column("error", JSONB),
    # A manual sync waits for its run by generation, and for the projections by offset.
    Column(
        "generation", BigInteger, nullable=False, server_default="0", comment="of the mark that the pass dealt with"
    ),
    Column("changeset_offset", BigInteger, comment="of the last record appended, in the partition of the Item"),
    Index("sync_runs_item", "item_id", "run"),  # runs.latest, runs.since
    Index("sync_runs_failed", "run", postgresql_where=text("outcome = 'failed'")),  # queue.status
    Index("sync_runs_unlinked", "started_at", postgresql_where=text("outcome = 'unlinked'")),  # leases.count_gone
)

rate_limit_buckets = Table(
    "rate_limit_buckets",
    metadata,
    Column("endpoint", Text, primary_key=True, comment="Plaid's path without slashes at its start: transactions/sync"),
    Column("item_id", Text, primary_key=True, comment="empty: the client's bucket"),
    Column("tat", DateTime(timezone=True), nullable=False, comment="GCRA's theoretical arrival time"),
    Index("rate_limit_buckets_tat", "tat"),  # quotas.purge
)

breakers = Table(
    "breakers",
    metadata,
    Column("institution_id", Text, primary_key=True),
    Column("failures", Integer, nullable=False, server_default="0", comment="in a row, over all its Items"),
    Column("trips", Integer, nullable=False, server_default="0", comment="in a row; each waits longer"),
    _moment("open_until"),  # null: closed; in the past: one Item may try
    Column("last_code", Text, comment="Plaid's error_code"),
    _moment("changed_at", nullable=False, now=True),
)

incidents = Table(
    "incidents",
    metadata,
    Column("incident", BigInteger, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False, comment="what it is about: an Item, a bank, the client"),
    Column("detail", Text, nullable=False),
    Column("count", Integer, nullable=False, server_default="1", comment="how often it was seen"),
    _moment("opened_at", nullable=False, now=True),
    _moment("last_at", nullable=False, now=True),
    _moment("closed_at"),
    _moment("alerted_at"),  # the message of its begin was sent
    _moment("end_alerted_at"),  # and that of its end
    # incidents.report: one open incident a kind and subject.
    Index("incidents_open", "kind", "subject", unique=True, postgresql_where=text("closed_at IS NULL")),
    # incidents.unalerted
    Index(
        "incidents_untold",
        "incident",
        postgresql_where=text("alerted_at IS NULL OR (closed_at IS NOT NULL AND end_alerted_at IS NULL)"),
    ),
)

reconciliations = Table(
    "reconciliations",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("account_id", Text, primary_key=True),
    Column("user_number", BigInteger, nullable=False),
    _moment("next_at", nullable=False, now=True),
    _moment("checked_at"),  # null: not checked yet
    Column("state", Text, comment="tied_out, gap, not_comparable"),
    Column("why", Text, comment="cause of a gap, or why nothing is claimed"),
    Column("currency", Text),
    Column("ledger", Numeric, comment="debits less credits, in major units: owed is negative"),
    Column("bank", Numeric, comment="what the bank reported, with the ledger's sign"),
    Column("gap", Numeric, nullable=False, server_default="0", comment="bank less ledger"),
    Column("source", Text, comment="of the balance: cached or realtime"),
    Column("tied_at", BigInteger, comment="first offset that it has not tied out with"),
    _moment("tied_out_at"),  # when it last tied out
    Index("reconciliations_next", "next_at"),  # reconciliations.claim
)

discrepancies = Table(
    "discrepancies",
    metadata,
    Column("discrepancy", BigInteger, primary_key=True, autoincrement=True),
    Column("item_id", Text, nullable=False),
    Column("account_id", Text, nullable=False),
    Column("user_number", BigInteger, nullable=False),
    Column("cause", Text, nullable=False),
    Column("against", Text, nullable=False, comment="bank: its balance; rows: the account's own rows"),
    Column("currency", Text),
    Column("ledger", Numeric),
    Column("bank", Numeric),
    Column("gap", Numeric, nullable=False),
    _json("evidence"),
    _moment("opened_at", nullable=False, now=True),
    _moment("cause_at", nullable=False, now=True),  # begin of this cause
    _moment("gap_at", nullable=False, now=True),  # begin of this size
    _moment("last_at", nullable=False, now=True),
    Column("count", Integer, nullable=False, server_default="1", comment="checks that saw it"),
    Column("repair", Text, nullable=False, comment="wait, sync, compare, ask"),
    _moment("repaired_at"),  # start of the repair; null where nothing is to be started
    Column("checks_after", Integer, nullable=False, server_default="0", comment="checks since the repair was done"),
    Column("outcome", Text, comment="persists, repaired, resolved, withdrawn"),
    _moment("resolved_at"),
    # reconciliations.account: one open discrepancy an account.
    Index("discrepancies_open", "item_id", "account_id", unique=True, postgresql_where=text("resolved_at IS NULL")),
    Index("discrepancies_account", "item_id", "account_id", "discrepancy"),  # reconciliations.history
    Index(
        "discrepancies_resolved", "resolved_at", postgresql_where=text("resolved_at IS NOT NULL")
    ),  # reconciliations.purge
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("dead_letter", BigInteger, primary_key=True, autoincrement=True),
    Column("stage", Text, nullable=False, comment="mark_due, streams, projections"),
    Column("topic", Text, nullable=False, comment="without prefix"),
    Column("partition", Integer, nullable=False),
    Column("source_offset", BigInteger, comment="null: an update of which no record could be made"),
    Column("item_id", Text),
    Column("key", LargeBinary),
    Column("value", LargeBinary, comment="the original, sealed"),
    Column("reason", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="1"),
    Column("code_version", Text, nullable=False),
    _moment("quarantined_at", nullable=False, now=True),
    _moment("published_at"),  # on the topic dead-letters
    _moment("redriven_at"),
    # dead_letters.write: one letter a record, however often it is read.
    Index(
        "dead_letters_record",
        "topic",
        "partition",
        "source_offset",
        unique=True,
        postgresql_where=text("source_offset IS NOT NULL"),
    ),
    Index("dead_letters_item", "item_id"),  # dead_letters.mark_redriven
    Index("dead_letters_unpublished", "dead_letter", postgresql_where=text("published_at IS NULL")),  # publish
    Index("dead_letters_quarantined_at", "quarantined_at"),  # dead_letters.purge
)

rebuilds = Table(
    "rebuilds",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False, comment="of the version that it makes"),
    Column("fold", Integer, nullable=False),
    Column("state", Text, nullable=False, comment="loading, loaded, live, old, dropped"),
    Column("checkpoints", JSONB, nullable=False, comment="by partition: below this offset encoded events are not kept"),
    _moment("started_at", nullable=False),
    _moment("loaded_at"),
    _moment("swapped_at"),
    _moment("dropped_at"),
    Column("result", JSONB, comment="counts, seconds, and how it differs from the version that was live"),
)

registry_ids = Table(
    "registry_ids",
    metadata,
    Column("registry", Text, primary_key=True, comment="its address, without user and password"),
    Column("subject", Text, primary_key=True),
    Column("schema", Integer, primary_key=True, autoincrement=False, comment="number in the catalogue"),
    Column("id", Integer, nullable=False, comment="what it calls this schema: goes before each published event"),
    _moment("asked_at", nullable=False),
)

facts = Table(
    "facts",
    metadata,
    Column("name", Text, primary_key=True, comment="epoch, partitions, live_version, system_identifier, …"),
    Column("value", JSONB, nullable=False),
)
