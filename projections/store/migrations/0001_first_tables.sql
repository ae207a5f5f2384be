-- Create the control tables, the first projection version and the views that readers use.
CREATE SCHEMA projection;

CREATE SCHEMA reads;

CREATE TABLE tartan.breakers (
    institution_id TEXT NOT NULL, 
    failures INTEGER DEFAULT '0' NOT NULL, 
    trips INTEGER DEFAULT '0' NOT NULL, 
    open_until TIMESTAMP WITH TIME ZONE, 
    last_code TEXT, 
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    PRIMARY KEY (institution_id)
);

COMMENT ON COLUMN tartan.breakers."failures" IS 'in a row, over all its Items';

COMMENT ON COLUMN tartan.breakers."trips" IS 'in a row; each waits longer';

COMMENT ON COLUMN tartan.breakers."last_code" IS 'Plaid''s error_code';

CREATE TABLE tartan.buckets (
    endpoint TEXT NOT NULL, 
    item_id TEXT NOT NULL, 
    full_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (endpoint, item_id)
);

CREATE INDEX buckets_full_at ON tartan.buckets (full_at);

COMMENT ON COLUMN tartan.buckets."endpoint" IS 'Plaid''s path without slashes at its start: transactions/sync';

COMMENT ON COLUMN tartan.buckets."item_id" IS 'empty: the client''s bucket';

COMMENT ON COLUMN tartan.buckets."full_at" IS 'GCRA''s theoretical arrival time';

CREATE TABLE tartan.credentials (
    item_id TEXT NOT NULL, 
    tenant TEXT NOT NULL, 
    user_number BIGINT NOT NULL, 
    institution_id TEXT, 
    institution_name TEXT, 
    sealed_token BYTEA, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    unlinked_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (item_id)
);

CREATE INDEX credentials_user ON tartan.credentials (user_number);

COMMENT ON COLUMN tartan.credentials."sealed_token" IS 'access token bound to the Item; null once unlinked';

CREATE TABLE tartan.dead_letters (
    dead_letter BIGSERIAL NOT NULL, 
    stage TEXT NOT NULL, 
    topic TEXT NOT NULL, 
    partition INTEGER NOT NULL, 
    source_offset BIGINT, 
    item_id TEXT, 
    key BYTEA, 
    value BYTEA, 
    reason TEXT NOT NULL, 
    attempts INTEGER DEFAULT '1' NOT NULL, 
    code_version TEXT NOT NULL, 
    parked_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    published_at TIMESTAMP WITH TIME ZONE, 
    redriven_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (dead_letter)
);

CREATE INDEX dead_letters_item ON tartan.dead_letters (item_id);

CREATE INDEX dead_letters_parked_at ON tartan.dead_letters (parked_at);

CREATE UNIQUE INDEX dead_letters_record ON tartan.dead_letters (topic, partition, source_offset) WHERE source_offset IS NOT NULL;

CREATE INDEX dead_letters_unpublished ON tartan.dead_letters (dead_letter) WHERE published_at IS NULL;

COMMENT ON COLUMN tartan.dead_letters."stage" IS 'mark_due, streams, projections';

COMMENT ON COLUMN tartan.dead_letters."topic" IS 'without prefix';

COMMENT ON COLUMN tartan.dead_letters."source_offset" IS 'null: an update of which no record could be made';

COMMENT ON COLUMN tartan.dead_letters."value" IS 'the original, sealed';

CREATE TABLE tartan.discrepancies (
    discrepancy BIGSERIAL NOT NULL, 
    item_id TEXT NOT NULL, 
    account_id TEXT NOT NULL, 
    user_number BIGINT NOT NULL, 
    cause TEXT NOT NULL, 
    against TEXT NOT NULL, 
    currency TEXT, 
    ledger NUMERIC, 
    bank NUMERIC, 
    gap NUMERIC NOT NULL, 
    evidence JSONB DEFAULT '{}' NOT NULL, 
    opened_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    cause_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    gap_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    last_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    count INTEGER DEFAULT '1' NOT NULL, 
    repair TEXT NOT NULL, 
    repaired_at TIMESTAMP WITH TIME ZONE, 
    checks_after INTEGER DEFAULT '0' NOT NULL, 
    outcome TEXT, 
    resolved_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (discrepancy)
);

CREATE INDEX discrepancies_account ON tartan.discrepancies (item_id, account_id, discrepancy);

CREATE UNIQUE INDEX discrepancies_open ON tartan.discrepancies (item_id, account_id) WHERE resolved_at IS NULL;

CREATE INDEX discrepancies_resolved ON tartan.discrepancies (resolved_at) WHERE resolved_at IS NOT NULL;

COMMENT ON COLUMN tartan.discrepancies."against" IS 'bank: its balance; rows: the account''s own rows';

COMMENT ON COLUMN tartan.discrepancies."count" IS 'checks that saw it';

COMMENT ON COLUMN tartan.discrepancies."repair" IS 'wait, sync, compare, ask';

COMMENT ON COLUMN tartan.discrepancies."checks_after" IS 'checks since the repair was done';

COMMENT ON COLUMN tartan.discrepancies."outcome" IS 'persists, repaired, resolved, withdrawn';

CREATE TABLE tartan.facts (
    name TEXT NOT NULL, 
    value JSONB NOT NULL, 
    PRIMARY KEY (name)
);

COMMENT ON COLUMN tartan.facts."name" IS 'epoch, partitions, live_version, system_identifier, …';

CREATE TABLE tartan.floors (
    partition SERIAL NOT NULL, 
    published BIGINT NOT NULL, 
    PRIMARY KEY (partition)
);

COMMENT ON COLUMN tartan.floors."published" IS 'all events of changesets below this offset were acknowledged';

CREATE TABLE tartan.heads (
    item_id TEXT NOT NULL, 
    user_number BIGINT NOT NULL, 
    partition INTEGER NOT NULL, 
    head BYTEA NOT NULL, 
    head_offset BIGINT NOT NULL, 
    head_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    unlinked BOOLEAN DEFAULT 'false' NOT NULL, 
    cursor TEXT, 
    state TEXT, 
    code TEXT, 
    history_status TEXT, 
    fingerprints JSONB DEFAULT '{}' NOT NULL, 
    hints_until BIGINT, 
    PRIMARY KEY (item_id)
);

COMMENT ON COLUMN tartan.heads."head" IS 'id of the last accepted chained record';

COMMENT ON COLUMN tartan.heads."head_at" IS 'the record''s own time';

COMMENT ON COLUMN tartan.heads."fingerprints" IS 'keyed pseudonym of an account to hex fingerprint';

CREATE TABLE tartan.held_topics (
    topic TEXT NOT NULL, 
    partition INTEGER NOT NULL, 
    since BIGINT NOT NULL, 
    first_offset BIGINT, 
    PRIMARY KEY (topic, partition)
);

COMMENT ON COLUMN tartan.held_topics."topic" IS 'without prefix';

COMMENT ON COLUMN tartan.held_topics."since" IS 'position in changesets when it was held';

COMMENT ON COLUMN tartan.held_topics."first_offset" IS 'in the topic: where the filling began; null until it did';

CREATE TABLE tartan.hints (
    item_id TEXT NOT NULL, 
    webhook_offset BIGINT NOT NULL, 
    webhook_partition INTEGER NOT NULL, 
    code TEXT NOT NULL, 
    fields JSONB DEFAULT '{}' NOT NULL, 
    received_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (item_id, webhook_offset)
);

COMMENT ON COLUMN tartan.hints."webhook_offset" IS 'all webhooks of an Item are in one partition';

COMMENT ON COLUMN tartan.hints."code" IS 'webhook_code';

CREATE TABLE tartan.incidents (
    incident BIGSERIAL NOT NULL, 
    kind TEXT NOT NULL, 
    subject TEXT NOT NULL, 
    detail TEXT NOT NULL, 
    count INTEGER DEFAULT '1' NOT NULL, 
    opened_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    last_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    closed_at TIMESTAMP WITH TIME ZONE, 
    alerted_at TIMESTAMP WITH TIME ZONE, 
    end_alerted_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (incident)
);

CREATE UNIQUE INDEX incidents_open ON tartan.incidents (kind, subject) WHERE closed_at IS NULL;

CREATE INDEX incidents_untold ON tartan.incidents (incident) WHERE alerted_at IS NULL OR (closed_at IS NOT NULL AND end_alerted_at IS NULL);

COMMENT ON COLUMN tartan.incidents."subject" IS 'what it is about: an Item, a bank, the client';

COMMENT ON COLUMN tartan.incidents."count" IS 'how often it was seen';

CREATE TABLE tartan.parkings (
    item_id TEXT NOT NULL, 
    first_offset BIGINT NOT NULL, 
    partition INTEGER NOT NULL, 
    redrive_offset BIGINT, 
    reason TEXT NOT NULL, 
    reader TEXT NOT NULL, 
    parked_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    PRIMARY KEY (item_id, first_offset)
);

COMMENT ON COLUMN tartan.parkings."first_offset" IS '-1: streams could not make a record';

CREATE TABLE tartan.positions (
    reader TEXT NOT NULL, 
    partition INTEGER NOT NULL, 
    position BIGINT NOT NULL, 
    last_checksum BYTEA, 
    PRIMARY KEY (reader, partition)
);

COMMENT ON COLUMN tartan.positions."position" IS 'first offset not dealt with';

COMMENT ON COLUMN tartan.positions."last_checksum" IS 'SHA-256 of the value before it';

CREATE TABLE tartan.rebuilds (
    number INTEGER NOT NULL, 
    fold INTEGER NOT NULL, 
    state TEXT NOT NULL, 
    floors JSONB NOT NULL, 
    started_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    loaded_at TIMESTAMP WITH TIME ZONE, 
    swapped_at TIMESTAMP WITH TIME ZONE, 
    dropped_at TIMESTAMP WITH TIME ZONE, 
    result JSONB, 
    PRIMARY KEY (number)
);

COMMENT ON COLUMN tartan.rebuilds."number" IS 'of the version that it makes';

COMMENT ON COLUMN tartan.rebuilds."state" IS 'loading, loaded, live, old, dropped';

COMMENT ON COLUMN tartan.rebuilds."floors" IS 'by partition: below this offset encoded events are not kept';

COMMENT ON COLUMN tartan.rebuilds."result" IS 'counts, seconds, and how it differs from the version that was live';

CREATE TABLE tartan.reconciliations (
    item_id TEXT NOT NULL, 
    account_id TEXT NOT NULL, 
    user_number BIGINT NOT NULL, 
    next_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    checked_at TIMESTAMP WITH TIME ZONE, 
    state TEXT, 
    why TEXT, 
    currency TEXT, 
    ledger NUMERIC, 
    bank NUMERIC, 
    gap NUMERIC DEFAULT '0' NOT NULL, 
    source TEXT, 
    tied_at BIGINT, 
    tied_out_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (item_id, account_id)
);

CREATE INDEX reconciliations_next ON tartan.reconciliations (next_at);

COMMENT ON COLUMN tartan.reconciliations."state" IS 'tied_out, gap, not_comparable';

COMMENT ON COLUMN tartan.reconciliations."why" IS 'cause of a gap, or why nothing is claimed';

COMMENT ON COLUMN tartan.reconciliations."ledger" IS 'debits less credits, in major units: owed is negative';

COMMENT ON COLUMN tartan.reconciliations."bank" IS 'what the bank reported, with the ledger''s sign';

COMMENT ON COLUMN tartan.reconciliations."gap" IS 'bank less ledger';

COMMENT ON COLUMN tartan.reconciliations."source" IS 'of the balance: cached or realtime';

COMMENT ON COLUMN tartan.reconciliations."tied_at" IS 'first offset that it has not tied out with';

CREATE TABLE tartan.registry_ids (
    registry TEXT NOT NULL, 
    subject TEXT NOT NULL, 
    schema INTEGER NOT NULL, 
    id INTEGER NOT NULL, 
    asked_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (registry, subject, schema)
);

COMMENT ON COLUMN tartan.registry_ids."registry" IS 'its address, without user and password';

COMMENT ON COLUMN tartan.registry_ids."schema" IS 'number in the catalogue';

COMMENT ON COLUMN tartan.registry_ids."id" IS 'what it calls this schema: goes before each published event';

CREATE TABLE tartan.repeats (
    key BYTEA NOT NULL, 
    seen_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (key)
);

CREATE INDEX repeats_seen_at ON tartan.repeats (seen_at);

COMMENT ON COLUMN tartan.repeats."key" IS 'SHA-256 of key id, iat and body hash';

CREATE TABLE tartan.sync_attempts (
    attempt BIGSERIAL NOT NULL, 
    item_id TEXT NOT NULL, 
    started_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    duration_s DOUBLE PRECISION NOT NULL, 
    cause TEXT NOT NULL, 
    pages INTEGER DEFAULT '0' NOT NULL, 
    added INTEGER DEFAULT '0' NOT NULL, 
    modified INTEGER DEFAULT '0' NOT NULL, 
    removed INTEGER DEFAULT '0' NOT NULL, 
    outcome TEXT NOT NULL, 
    error JSONB, 
    generation BIGINT DEFAULT '0' NOT NULL, 
    changeset_offset BIGINT, 
    PRIMARY KEY (attempt)
);

CREATE INDEX sync_attempts_failed ON tartan.sync_attempts (attempt) WHERE outcome = 'failed';

CREATE INDEX sync_attempts_item ON tartan.sync_attempts (item_id, attempt);

CREATE INDEX sync_attempts_unlinked ON tartan.sync_attempts (started_at) WHERE outcome = 'unlinked';

COMMENT ON COLUMN tartan.sync_attempts."outcome" IS 'appended, unchanged, not_ready, limited, stopped, unlinked, failed';

COMMENT ON COLUMN tartan.sync_attempts."generation" IS 'of the mark that the pass dealt with';

COMMENT ON COLUMN tartan.sync_attempts."changeset_offset" IS 'of the last record appended, in the partition of the Item';

CREATE TABLE tartan.sync_state (
    item_id TEXT NOT NULL, 
    tenant TEXT NOT NULL, 
    user_number BIGINT NOT NULL, 
    partition INTEGER NOT NULL, 
    institution_id TEXT, 
    lane SMALLINT DEFAULT '3' NOT NULL, 
    generation BIGINT DEFAULT '1' NOT NULL, 
    done_generation BIGINT DEFAULT '0' NOT NULL, 
    due_at TIMESTAMP WITH TIME ZONE, 
    not_before TIMESTAMP WITH TIME ZONE, 
    attempts INTEGER DEFAULT '0' NOT NULL, 
    not_ready INTEGER DEFAULT '0' NOT NULL, 
    lease_token BYTEA, 
    lease_until TIMESTAMP WITH TIME ZONE, 
    lease_holder TEXT, 
    wait_offset BIGINT, 
    cause JSONB DEFAULT '{"kind": "operator"}' NOT NULL, 
    unlink_requested BOOLEAN DEFAULT 'false' NOT NULL, 
    accounts_wanted BOOLEAN DEFAULT 'true' NOT NULL, 
    accounts_at TIMESTAMP WITH TIME ZONE, 
    refresh_wanted BOOLEAN DEFAULT 'false' NOT NULL, 
    history_incomplete BOOLEAN DEFAULT 'false' NOT NULL, 
    refreshed_at TIMESTAMP WITH TIME ZONE, 
    bank_updated_at TIMESTAMP WITH TIME ZONE, 
    bank_seen_at TIMESTAMP WITH TIME ZONE, 
    swept_at TIMESTAMP WITH TIME ZONE, 
    last_webhook_at TIMESTAMP WITH TIME ZONE, 
    last_synced_at TIMESTAMP WITH TIME ZONE, 
    last_attempt_at TIMESTAMP WITH TIME ZONE, 
    last_error JSONB, 
    stopped TEXT, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    ready_at TIMESTAMP WITH TIME ZONE GENERATED ALWAYS AS (CASE WHEN due_at IS NOT NULL THEN greatest(due_at, not_before) END) STORED, 
    PRIMARY KEY (item_id)
);

CREATE INDEX sync_state_idle ON tartan.sync_state (last_synced_at) WHERE due_at IS NULL;

CREATE INDEX sync_state_institution ON tartan.sync_state (institution_id);

CREATE INDEX sync_state_ready ON tartan.sync_state (tenant, lane, ready_at) WHERE ready_at IS NOT NULL;

CREATE INDEX sync_state_sweep ON tartan.sync_state (swept_at);

CREATE INDEX sync_state_user ON tartan.sync_state (user_number);

COMMENT ON COLUMN tartan.sync_state."partition" IS 'of changesets, by the user number''s key';

COMMENT ON COLUMN tartan.sync_state."lane" IS '0 webhook 1 manual 2 schedule 3 backfill';

COMMENT ON COLUMN tartan.sync_state."generation" IS 'raised by each mark; dirty while > done';

COMMENT ON COLUMN tartan.sync_state."attempts" IS 'failures in a row';

COMMENT ON COLUMN tartan.sync_state."not_ready" IS 'answers in a row: history not ready';

COMMENT ON COLUMN tartan.sync_state."lease_token" IS 'random; whoever has it may work';

COMMENT ON COLUMN tartan.sync_state."lease_holder" IS 'instance id of the process that has the lease';

COMMENT ON COLUMN tartan.sync_state."wait_offset" IS 'not claimed before follow_heads has read this offset';

COMMENT ON COLUMN tartan.sync_state."cause" IS 'of the latest mark: schemas.log.records.Cause';

COMMENT ON COLUMN tartan.sync_state."accounts_wanted" IS '/accounts/get is due';

COMMENT ON COLUMN tartan.sync_state."refresh_wanted" IS '/transactions/refresh is due';

COMMENT ON COLUMN tartan.sync_state."stopped" IS 'why nothing is scheduled: login_required, revoked, gone, refused, parked, erased, unlinked';

COMMENT ON COLUMN tartan.sync_state."ready_at" IS 'when the Item can be claimed; null where it is not due';

CREATE TABLE tartan.user_keys (
    user_number BIGINT NOT NULL, 
    generation INTEGER NOT NULL, 
    wrapped BYTEA, 
    state TEXT NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    destroyed_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (user_number), 
    CONSTRAINT user_keys_active_or_destroyed CHECK ((state = 'active') = (wrapped IS NOT NULL))
);

COMMENT ON COLUMN tartan.user_keys."wrapped" IS 'data key under the key-encryption key; null once destroyed';

CREATE TABLE tartan.users (
    user_number BIGINT NOT NULL, 
    tenant TEXT NOT NULL, 
    user_id TEXT NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    PRIMARY KEY (user_number), 
    CONSTRAINT users_tenant_user_id UNIQUE (tenant, user_id)
);

COMMENT ON COLUMN tartan.users."user_number" IS 'random 63-bit, stands in topics';

COMMENT ON COLUMN tartan.users."user_id" IS 'the application''s own id of the user';

CREATE TABLE projection.account_versions (
    item_id TEXT NOT NULL, 
    account_id TEXT NOT NULL, 
    version INTEGER NOT NULL, 
    user_number BIGINT NOT NULL, 
    source TEXT NOT NULL, 
    words BYTEA NOT NULL, 
    words_schema SMALLINT NOT NULL, 
    changeset BIGINT NOT NULL, 
    known_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (item_id, account_id, version)
);

COMMENT ON COLUMN projection.account_versions."words" IS 'the bank''s words, Avro';

COMMENT ON COLUMN projection.account_versions."changeset" IS 'offset';

CREATE TABLE projection.accounts (
    item_id TEXT NOT NULL, 
    account_id TEXT NOT NULL, 
    user_number BIGINT NOT NULL, 
    persistent_account_id TEXT, 
    name TEXT, 
    official_name TEXT, 
    mask TEXT, 
    type TEXT NOT NULL, 
    subtype TEXT, 
    currency TEXT NOT NULL, 
    current_value BIGINT, 
    current_scale SMALLINT, 
    current TEXT, 
    available_value BIGINT, 
    available_scale SMALLINT, 
    available TEXT, 
    limit_value BIGINT, 
    limit_scale SMALLINT, 
    "limit" TEXT, 
    source TEXT NOT NULL, 
    cached_words BYTEA, 
    cached_schema SMALLINT DEFAULT '0' NOT NULL, 
    cached_at TIMESTAMP WITH TIME ZONE, 
    realtime_words BYTEA, 
    realtime_schema SMALLINT DEFAULT '0' NOT NULL, 
    realtime_at TIMESTAMP WITH TIME ZONE, 
    version INTEGER NOT NULL, 
    last_changeset BIGINT NOT NULL, 
    known_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    opened BIGINT, 
    opening_transfers INTEGER DEFAULT '0' NOT NULL, 
    continues_item TEXT, 
    continues_account TEXT, 
    continued_by_item TEXT, 
    continued_by_account TEXT, 
    PRIMARY KEY (item_id, account_id)
);

CREATE INDEX accounts_account ON projection.accounts (account_id);

CREATE INDEX accounts_user ON projection.accounts (user_number);

COMMENT ON COLUMN projection.accounts."account_id" IS 'Plaid''s ids are scoped to the Item';

COMMENT ON COLUMN projection.accounts."source" IS 'of the columns above: cached or realtime, whichever came last';

COMMENT ON COLUMN projection.accounts."cached_words" IS 'last words of a sync, Avro';

COMMENT ON COLUMN projection.accounts."cached_at" IS 'known_at of the last sync that said something else';

COMMENT ON COLUMN projection.accounts."realtime_words" IS 'last words of a real-time balance, Avro';

COMMENT ON COLUMN projection.accounts."version" IS 'number of balance.updated events';

COMMENT ON COLUMN projection.accounts."last_changeset" IS 'offset';

COMMENT ON COLUMN projection.accounts."opened" IS 'offset of the changeset that posted its opening balance';

COMMENT ON COLUMN projection.accounts."opening_transfers" IS 'transfers of its opening so far';

COMMENT ON COLUMN projection.accounts."continues_item" IS 'Item of the older account that this one goes on from';

COMMENT ON COLUMN projection.accounts."continued_by_item" IS 'Item of the younger account that goes on from this one';

CREATE TABLE projection.changesets (
    partition INTEGER NOT NULL, 
    source_offset BIGINT NOT NULL, 
    id BYTEA NOT NULL, 
    item_id TEXT, 
    user_number BIGINT NOT NULL, 
    kind TEXT NOT NULL, 
    type TEXT NOT NULL, 
    cause JSONB NOT NULL, 
    counts JSONB DEFAULT '{}'::jsonb NOT NULL, 
    not_effective JSONB DEFAULT '{}'::jsonb NOT NULL, 
    net_events INTEGER NOT NULL, 
    digest BYTEA NOT NULL, 
    events BYTEA, 
    redriven_by BIGINT, 
    said_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    known_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    body_fingerprint BYTEA, 
    PRIMARY KEY (partition, source_offset), 
    UNIQUE (id)
);

CREATE INDEX changesets_item ON projection.changesets (item_id, source_offset);

CREATE INDEX changesets_user ON projection.changesets (user_number, source_offset);

COMMENT ON COLUMN projection.changesets."id" IS 'look-up of free records that were accepted';

COMMENT ON COLUMN projection.changesets."counts" IS 'events that the record said, by type';

COMMENT ON COLUMN projection.changesets."not_effective" IS 'events without effect yet, by type';

COMMENT ON COLUMN projection.changesets."digest" IS 'SHA-256 of the block of net events';

COMMENT ON COLUMN projection.changesets."events" IS 'net events as published: block of events.v1, zstd; null once expired';

COMMENT ON COLUMN projection.changesets."redriven_by" IS 'withheld and folded later: offset of the redrive, which has its events';

COMMENT ON COLUMN projection.changesets."said_at" IS 'when the record was made';

COMMENT ON COLUMN projection.changesets."body_fingerprint" IS 'free records: keyed fingerprint of the request''s body';

CREATE TABLE projection.identity_links (
    item_id TEXT NOT NULL, 
    transaction_id TEXT NOT NULL, 
    own_id BYTEA NOT NULL, 
    user_number BIGINT NOT NULL, 
    rule TEXT NOT NULL, 
    score SMALLINT NOT NULL, 
    evidence JSONB NOT NULL, 
    changeset BIGINT NOT NULL, 
    known_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (item_id, transaction_id)
);

CREATE INDEX identity_links_own ON projection.identity_links (own_id);

COMMENT ON COLUMN projection.identity_links."transaction_id" IS 'Plaid''s id';

COMMENT ON COLUMN projection.identity_links."own_id" IS 'the transaction that it is';

COMMENT ON COLUMN projection.identity_links."rule" IS 'of identity_match; left: the id leads nowhere any more';

COMMENT ON COLUMN projection.identity_links."score" IS '0 to 100';

COMMENT ON COLUMN projection.identity_links."changeset" IS 'offset';

CREATE TABLE projection.items (
    item_id TEXT NOT NULL, 
    user_number BIGINT NOT NULL, 
    partition INTEGER NOT NULL, 
    institution_id TEXT, 
    institution_name TEXT, 
    state TEXT, 
    code TEXT, 
    reason TEXT, 
    effective_at TEXT, 
    history_status TEXT, 
    words BYTEA, 
    words_schema SMALLINT, 
    head BYTEA, 
    head_offset BIGINT, 
    unlinked BOOLEAN DEFAULT 'false' NOT NULL, 
    transaction_rows BIGINT DEFAULT '0' NOT NULL, 
    linked_at TIMESTAMP WITH TIME ZONE, 
    unlinked_at TIMESTAMP WITH TIME ZONE, 
    last_sync_at TIMESTAMP WITH TIME ZONE, 
    missing_rows INTEGER DEFAULT '0' NOT NULL, 
    missing_since BYTEA, 
    has_twins BOOLEAN DEFAULT 'false' NOT NULL, 
    waiting_edits JSONB, 
    known_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (item_id)
);

CREATE INDEX items_user ON projection.items (user_number);

COMMENT ON COLUMN projection.items."code" IS 'Plaid''s error_code or webhook_code behind the state';

COMMENT ON COLUMN projection.items."effective_at" IS 'as Plaid wrote it';

COMMENT ON COLUMN projection.items."words" IS 'last words about the Item, Avro';

COMMENT ON COLUMN projection.items."head" IS 'gate: id of the last accepted chained record';

COMMENT ON COLUMN projection.items."unlinked" IS 'gate: nothing chained counts any more';

COMMENT ON COLUMN projection.items."transaction_rows" IS '0: no look-up of known rows';

COMMENT ON COLUMN projection.items."linked_at" IS 'known_at of the link';

COMMENT ON COLUMN projection.items."last_sync_at" IS 'known_at of the last accepted sync';

COMMENT ON COLUMN projection.items."missing_rows" IS 'transactions that a restated history does not name and that wait for a decision';

COMMENT ON COLUMN projection.items."missing_since" IS 'id of that changeset: the subject of the decision';

COMMENT ON COLUMN projection.items."has_twins" IS 'another Item of the user reports, or reported, some of its accounts: look for its rows there too';

COMMENT ON COLUMN projection.items."waiting_edits" IS 'by Plaid id: what the user said of transactions that are not there';

CREATE TABLE projection.ledger_accounts (
    id BYTEA NOT NULL, 
    user_number BIGINT NOT NULL, 
    kind TEXT NOT NULL, 
    reference TEXT NOT NULL, 
    currency TEXT NOT NULL, 
    scale SMALLINT NOT NULL, 
    PRIMARY KEY (id), 
    CONSTRAINT ledger_accounts_kind CHECK (kind IN ('bank', 'category', 'equity'))
);

CREATE INDEX ledger_accounts_user ON projection.ledger_accounts (user_number);

COMMENT ON COLUMN projection.ledger_accounts."id" IS 'schemas.ids.ledger_account_id';

COMMENT ON COLUMN projection.ledger_accounts."reference" IS 'bank: account_id; category: its primary name';

COMMENT ON COLUMN projection.ledger_accounts."scale" IS 'decimals of all its amounts';

CREATE TABLE projection.ledger_balances (
    account BYTEA NOT NULL, 
    layer TEXT NOT NULL, 
    debits NUMERIC NOT NULL, 
    credits NUMERIC NOT NULL, 
    PRIMARY KEY (account, layer)
);

COMMENT ON COLUMN projection.ledger_balances."account" IS 'ledger account';

CREATE TABLE projection.ledger_transfers (
    own_id BYTEA NOT NULL, 
    number INTEGER NOT NULL, 
    user_number BIGINT NOT NULL, 
    debit BYTEA NOT NULL, 
    credit BYTEA NOT NULL, 
    amount NUMERIC(38, 0) NOT NULL, 
    currency TEXT NOT NULL, 
    layer TEXT NOT NULL, 
    reverses INTEGER, 
    effective DATE NOT NULL, 
    partition INTEGER NOT NULL, 
    changeset BIGINT NOT NULL, 
    known_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (own_id, number)
);

COMMENT ON COLUMN projection.ledger_transfers."number" IS '1 for the first of its transaction';

COMMENT ON COLUMN projection.ledger_transfers."debit" IS 'ledger account that receives';

COMMENT ON COLUMN projection.ledger_transfers."credit" IS 'ledger account that gives';

COMMENT ON COLUMN projection.ledger_transfers."amount" IS 'at the accounts'' scale, never negative';

COMMENT ON COLUMN projection.ledger_transfers."layer" IS 'pending or posted';

COMMENT ON COLUMN projection.ledger_transfers."reverses" IS 'number of the transfer that this one takes back';

COMMENT ON COLUMN projection.ledger_transfers."effective" IS 'the transaction''s date';

COMMENT ON COLUMN projection.ledger_transfers."changeset" IS 'offset';

CREATE TABLE projection.parts (
    item_id TEXT NOT NULL, 
    id BYTEA NOT NULL, 
    source_offset BIGINT NOT NULL, 
    value BYTEA NOT NULL, 
    PRIMARY KEY (item_id, id)
);

COMMENT ON COLUMN projection.parts."value" IS 'the record, sealed';

CREATE TABLE projection.positions (
    partition INTEGER NOT NULL, 
    position BIGINT NOT NULL, 
    last_checksum BYTEA, 
    known_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (partition)
);

COMMENT ON COLUMN projection.positions."position" IS 'first offset not dealt with';

COMMENT ON COLUMN projection.positions."last_checksum" IS 'SHA-256 of the value before it';

COMMENT ON COLUMN projection.positions."known_at" IS 'of the record before it; the next one''s is never earlier';

CREATE TABLE projection.reviews (
    id BYTEA NOT NULL, 
    user_number BIGINT NOT NULL, 
    item_id TEXT NOT NULL, 
    own_id BYTEA NOT NULL, 
    candidates JSONB NOT NULL, 
    reason TEXT NOT NULL, 
    state TEXT NOT NULL, 
    chosen BYTEA, 
    changeset BIGINT NOT NULL, 
    decided BIGINT, 
    known_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    decided_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (id)
);

CREATE INDEX reviews_open ON projection.reviews (user_number) WHERE state = 'open';

COMMENT ON COLUMN projection.reviews."own_id" IS 'the younger transaction, held out of the ledger meanwhile';

COMMENT ON COLUMN projection.reviews."candidates" IS 'own ids that it may be, with score and evidence';

COMMENT ON COLUMN projection.reviews."state" IS 'open, approved, rejected, settled';

COMMENT ON COLUMN projection.reviews."chosen" IS 'own id that it was found to be';

COMMENT ON COLUMN projection.reviews."changeset" IS 'offset of what opened it';

COMMENT ON COLUMN projection.reviews."decided" IS 'offset of what ended it';

CREATE TABLE projection.transaction_versions (
    own_id BYTEA NOT NULL, 
    version INTEGER NOT NULL, 
    user_number BIGINT NOT NULL, 
    item_id TEXT NOT NULL, 
    transaction_id TEXT NOT NULL, 
    words BYTEA NOT NULL, 
    words_schema SMALLINT NOT NULL, 
    user_fields JSONB, 
    removed_at TIMESTAMP WITH TIME ZONE, 
    review BYTEA, 
    changeset BIGINT NOT NULL, 
    known_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    until_changeset BIGINT NOT NULL, 
    until TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (own_id, version)
);

CREATE INDEX transaction_versions_user ON projection.transaction_versions (user_number, until);

COMMENT ON COLUMN projection.transaction_versions."words" IS 'the bank''s words, Avro';

COMMENT ON COLUMN projection.transaction_versions."changeset" IS 'offset of what made this version';

COMMENT ON COLUMN projection.transaction_versions."until_changeset" IS 'offset of what made the next one';

COMMENT ON COLUMN projection.transaction_versions."until" IS 'known_at of the next one';

CREATE TABLE projection.transactions (
    own_id BYTEA NOT NULL, 
    user_number BIGINT NOT NULL, 
    item_id TEXT NOT NULL, 
    transaction_id TEXT NOT NULL, 
    chained BOOLEAN NOT NULL, 
    version INTEGER NOT NULL, 
    transfers INTEGER NOT NULL, 
    first_changeset BIGINT NOT NULL, 
    last_changeset BIGINT NOT NULL, 
    known_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    enriched_at TIMESTAMP WITH TIME ZONE, 
    removed_at TIMESTAMP WITH TIME ZONE, 
    words BYTEA NOT NULL, 
    words_schema SMALLINT NOT NULL, 
    account_id TEXT NOT NULL, 
    amount_value BIGINT NOT NULL, 
    amount_scale SMALLINT NOT NULL, 
    currency TEXT NOT NULL, 
    pending BOOLEAN NOT NULL, 
    date DATE NOT NULL, 
    datetime TEXT, 
    authorized_date DATE, 
    name TEXT, 
    merchant_name TEXT, 
    merchant_entity_id TEXT, 
    logo_url TEXT, 
    category_primary TEXT, 
    category_detailed TEXT, 
    category_confidence TEXT, 
    user_fields JSONB, 
    legs SMALLINT DEFAULT '1' NOT NULL, 
    review BYTEA, 
    missing_since BIGINT, 
    PRIMARY KEY (own_id)
);

CREATE UNIQUE INDEX transactions_chained ON projection.transactions (item_id, transaction_id) WHERE chained;

CREATE INDEX transactions_missing ON projection.transactions (item_id) WHERE missing_since IS NOT NULL;

CREATE INDEX transactions_user_date ON projection.transactions (user_number, date DESC);

COMMENT ON COLUMN projection.transactions."own_id" IS '16 bytes, outlives pending to posted';

COMMENT ON COLUMN projection.transactions."transaction_id" IS 'Plaid''s current id';

COMMENT ON COLUMN projection.transactions."chained" IS 'own_id is not derived from transaction_id alone';

COMMENT ON COLUMN projection.transactions."version" IS 'number of events so far';

COMMENT ON COLUMN projection.transactions."transfers" IS 'number of ledger transfers so far';

COMMENT ON COLUMN projection.transactions."first_changeset" IS 'offset';

COMMENT ON COLUMN projection.transactions."last_changeset" IS 'offset';

COMMENT ON COLUMN projection.transactions."enriched_at" IS 'known_at of the last change of category, merchant or logo';

COMMENT ON COLUMN projection.transactions."removed_at" IS 'known_at of the removal; null while the bank has it';

COMMENT ON COLUMN projection.transactions."words" IS 'the bank''s last words, Avro';

COMMENT ON COLUMN projection.transactions."amount_value" IS 'positive leaves the account';

COMMENT ON COLUMN projection.transactions."datetime" IS 'as Plaid wrote it';

COMMENT ON COLUMN projection.transactions."user_fields" IS 'what the user said: field to {value, at}, at the offset that said it; no bank update touches it';

COMMENT ON COLUMN projection.transactions."legs" IS 'its last transfers, which count now';

COMMENT ON COLUMN projection.transactions."review" IS 'review that must say first whether it is a purchase of its own';

COMMENT ON COLUMN projection.transactions."missing_since" IS 'offset of the restated history that does not name it; null again once the bank names it';

CREATE TABLE projection.withheld (
    item_id TEXT NOT NULL, 
    partition INTEGER NOT NULL, 
    source_offset BIGINT NOT NULL, 
    value BYTEA NOT NULL, 
    PRIMARY KEY (item_id, partition, source_offset)
);

COMMENT ON COLUMN projection.withheld."value" IS 'the record, sealed';

ALTER TABLE projection.changesets ALTER COLUMN events SET STORAGE EXTERNAL;

ALTER TABLE projection.withheld ALTER COLUMN value SET STORAGE EXTERNAL;

ALTER TABLE projection.parts ALTER COLUMN value SET STORAGE EXTERNAL;

CREATE FUNCTION projection.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION 'ledger transfers are only inserted, a correction is a reversal'
                    USING ERRCODE = 'restrict_violation';
            END $$;

CREATE TRIGGER ledger_transfers_insert_only
            BEFORE UPDATE OR DELETE OR TRUNCATE ON projection.ledger_transfers
            FOR EACH STATEMENT EXECUTE FUNCTION projection.refuse_change();
