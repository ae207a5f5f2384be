CREATE SCHEMA IF NOT EXISTS tartan;
CREATE TABLE tartan.alembic_version (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> 0001

CREATE SCHEMA projection_1;

CREATE SCHEMA reads;

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

CREATE INDEX sync_attempts_item ON tartan.sync_attempts (item_id, attempt);

COMMENT ON COLUMN tartan.sync_attempts."outcome" IS 'appended, unchanged, not_ready, stopped, unlinked, failed';

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
    last_webhook_at TIMESTAMP WITH TIME ZONE, 
    last_synced_at TIMESTAMP WITH TIME ZONE, 
    last_attempt_at TIMESTAMP WITH TIME ZONE, 
    last_error JSONB, 
    stopped TEXT, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    PRIMARY KEY (item_id)
);

CREATE INDEX sync_state_due ON tartan.sync_state (lane, due_at) WHERE due_at IS NOT NULL;

CREATE INDEX sync_state_idle ON tartan.sync_state (last_synced_at) WHERE due_at IS NULL;

CREATE INDEX sync_state_oldest ON tartan.sync_state (due_at) WHERE due_at IS NOT NULL;

CREATE INDEX sync_state_user ON tartan.sync_state (user_number);

COMMENT ON COLUMN tartan.sync_state."partition" IS 'of changesets, by the user number''s key';

COMMENT ON COLUMN tartan.sync_state."lane" IS '0 webhook 1 manual 2 schedule 3 backfill';

COMMENT ON COLUMN tartan.sync_state."generation" IS 'raised by each mark; dirty while > done';

COMMENT ON COLUMN tartan.sync_state."attempts" IS 'failures in a row';

COMMENT ON COLUMN tartan.sync_state."not_ready" IS 'answers in a row: history not ready';

COMMENT ON COLUMN tartan.sync_state."lease_token" IS 'random; whoever has it may work';

COMMENT ON COLUMN tartan.sync_state."lease_holder" IS 'instance id of the process that has the lease';

COMMENT ON COLUMN tartan.sync_state."wait_offset" IS 'not claimed before follow_heads has read this offset';

COMMENT ON COLUMN tartan.sync_state."cause" IS 'of the latest mark: schemas.records.Cause';

COMMENT ON COLUMN tartan.sync_state."accounts_wanted" IS '/accounts/get is due';

COMMENT ON COLUMN tartan.sync_state."stopped" IS 'why nothing is scheduled: login_required, revoked, gone, refused, parked, erased, unlinked';

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

CREATE TABLE projection_1.accounts (
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
    PRIMARY KEY (item_id, account_id)
);

CREATE INDEX accounts_user ON projection_1.accounts (user_number);

COMMENT ON COLUMN projection_1.accounts."account_id" IS 'Plaid''s ids are scoped to the Item';

COMMENT ON COLUMN projection_1.accounts."source" IS 'of the columns above: cached or realtime, whichever came last';

COMMENT ON COLUMN projection_1.accounts."cached_words" IS 'last words of a sync, Avro';

COMMENT ON COLUMN projection_1.accounts."cached_at" IS 'known_at of the last sync that said something else';

COMMENT ON COLUMN projection_1.accounts."realtime_words" IS 'last words of a real-time balance, Avro';

COMMENT ON COLUMN projection_1.accounts."version" IS 'number of balance.updated events';

COMMENT ON COLUMN projection_1.accounts."last_changeset" IS 'offset';

CREATE TABLE projection_1.changesets (
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
    said_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    known_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (partition, source_offset), 
    UNIQUE (id)
);

CREATE INDEX changesets_item ON projection_1.changesets (item_id, source_offset);

CREATE INDEX changesets_user ON projection_1.changesets (user_number, source_offset);

COMMENT ON COLUMN projection_1.changesets."id" IS 'look-up of free records that were accepted';

COMMENT ON COLUMN projection_1.changesets."counts" IS 'events that the record said, by type';

COMMENT ON COLUMN projection_1.changesets."not_effective" IS 'events without effect yet, by type';

COMMENT ON COLUMN projection_1.changesets."digest" IS 'SHA-256 of the block of net events';

COMMENT ON COLUMN projection_1.changesets."events" IS 'net events as published: block of events.v1, zstd; null once expired';

COMMENT ON COLUMN projection_1.changesets."said_at" IS 'when the record was made';

CREATE TABLE projection_1.items (
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
    known_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (item_id)
);

CREATE INDEX items_user ON projection_1.items (user_number);

COMMENT ON COLUMN projection_1.items."code" IS 'Plaid''s error_code or webhook_code behind the state';

COMMENT ON COLUMN projection_1.items."effective_at" IS 'as Plaid wrote it';

COMMENT ON COLUMN projection_1.items."words" IS 'last words about the Item, Avro';

COMMENT ON COLUMN projection_1.items."head" IS 'gate: id of the last accepted chained record';

COMMENT ON COLUMN projection_1.items."unlinked" IS 'gate: nothing chained counts any more';

COMMENT ON COLUMN projection_1.items."transaction_rows" IS '0: no look-up of known rows';

COMMENT ON COLUMN projection_1.items."linked_at" IS 'known_at of the link';

COMMENT ON COLUMN projection_1.items."last_sync_at" IS 'known_at of the last accepted sync';

CREATE TABLE projection_1.ledger_accounts (
    id BYTEA NOT NULL, 
    user_number BIGINT NOT NULL, 
    kind TEXT NOT NULL, 
    reference TEXT NOT NULL, 
    currency TEXT NOT NULL, 
    scale SMALLINT NOT NULL, 
    PRIMARY KEY (id), 
    CONSTRAINT ledger_accounts_kind CHECK (kind IN ('bank', 'category', 'equity'))
);

CREATE INDEX ledger_accounts_user ON projection_1.ledger_accounts (user_number);

COMMENT ON COLUMN projection_1.ledger_accounts."id" IS 'schemas.ids.ledger_account_id';

COMMENT ON COLUMN projection_1.ledger_accounts."reference" IS 'bank: account_id; category: its primary name';

COMMENT ON COLUMN projection_1.ledger_accounts."scale" IS 'decimals of all its amounts';

CREATE TABLE projection_1.ledger_balances (
    account BYTEA NOT NULL, 
    layer TEXT NOT NULL, 
    debits NUMERIC NOT NULL, 
    credits NUMERIC NOT NULL, 
    PRIMARY KEY (account, layer)
);

COMMENT ON COLUMN projection_1.ledger_balances."account" IS 'ledger account';

CREATE TABLE projection_1.ledger_transfers (
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

COMMENT ON COLUMN projection_1.ledger_transfers."number" IS '1 for the first of its transaction';

COMMENT ON COLUMN projection_1.ledger_transfers."debit" IS 'ledger account that receives';

COMMENT ON COLUMN projection_1.ledger_transfers."credit" IS 'ledger account that gives';

COMMENT ON COLUMN projection_1.ledger_transfers."amount" IS 'at the accounts'' scale, never negative';

COMMENT ON COLUMN projection_1.ledger_transfers."layer" IS 'pending or posted';

COMMENT ON COLUMN projection_1.ledger_transfers."reverses" IS 'number of the transfer that this one takes back';

COMMENT ON COLUMN projection_1.ledger_transfers."effective" IS 'the transaction''s date';

COMMENT ON COLUMN projection_1.ledger_transfers."changeset" IS 'offset';

CREATE TABLE projection_1.parts (
    item_id TEXT NOT NULL, 
    id BYTEA NOT NULL, 
    source_offset BIGINT NOT NULL, 
    value BYTEA NOT NULL, 
    PRIMARY KEY (item_id, id)
);

COMMENT ON COLUMN projection_1.parts."value" IS 'the record, sealed';

CREATE TABLE projection_1.positions (
    partition INTEGER NOT NULL, 
    position BIGINT NOT NULL, 
    last_checksum BYTEA, 
    known_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (partition)
);

COMMENT ON COLUMN projection_1.positions."position" IS 'first offset not dealt with';

COMMENT ON COLUMN projection_1.positions."last_checksum" IS 'SHA-256 of the value before it';

COMMENT ON COLUMN projection_1.positions."known_at" IS 'of the record before it; the next one''s is never earlier';

CREATE TABLE projection_1.transactions (
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
    PRIMARY KEY (own_id)
);

CREATE UNIQUE INDEX transactions_chained ON projection_1.transactions (item_id, transaction_id) WHERE chained;

CREATE INDEX transactions_user_date ON projection_1.transactions (user_number, date DESC);

COMMENT ON COLUMN projection_1.transactions."own_id" IS '16 bytes, outlives pending to posted';

COMMENT ON COLUMN projection_1.transactions."transaction_id" IS 'Plaid''s current id';

COMMENT ON COLUMN projection_1.transactions."chained" IS 'own_id is not derived from transaction_id alone';

COMMENT ON COLUMN projection_1.transactions."version" IS 'number of events so far';

COMMENT ON COLUMN projection_1.transactions."transfers" IS 'number of ledger transfers so far';

COMMENT ON COLUMN projection_1.transactions."first_changeset" IS 'offset';

COMMENT ON COLUMN projection_1.transactions."last_changeset" IS 'offset';

COMMENT ON COLUMN projection_1.transactions."enriched_at" IS 'known_at of the last change of category, merchant or logo';

COMMENT ON COLUMN projection_1.transactions."removed_at" IS 'known_at of the removal; null while the bank has it';

COMMENT ON COLUMN projection_1.transactions."words" IS 'the bank''s last words, Avro';

COMMENT ON COLUMN projection_1.transactions."amount_value" IS 'positive leaves the account';

COMMENT ON COLUMN projection_1.transactions."datetime" IS 'as Plaid wrote it';

COMMENT ON COLUMN projection_1.transactions."user_fields" IS 'what the user said; no bank update touches it';

CREATE TABLE projection_1.withheld (
    item_id TEXT NOT NULL, 
    partition INTEGER NOT NULL, 
    source_offset BIGINT NOT NULL, 
    value BYTEA NOT NULL, 
    PRIMARY KEY (item_id, partition, source_offset)
);

COMMENT ON COLUMN projection_1.withheld."value" IS 'the record, sealed';

ALTER TABLE projection_1.changesets ALTER COLUMN events SET STORAGE EXTERNAL;

ALTER TABLE projection_1.withheld ALTER COLUMN value SET STORAGE EXTERNAL;

ALTER TABLE projection_1.parts ALTER COLUMN value SET STORAGE EXTERNAL;

CREATE FUNCTION projection_1.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION 'ledger transfers are only inserted, a correction is a reversal'
                    USING ERRCODE = 'restrict_violation';
            END $$;

CREATE TRIGGER ledger_transfers_insert_only
            BEFORE UPDATE OR DELETE OR TRUNCATE ON projection_1.ledger_transfers
            FOR EACH STATEMENT EXECUTE FUNCTION projection_1.refuse_change();

CREATE OR REPLACE VIEW reads.items AS SELECT * FROM projection_1.items;

CREATE OR REPLACE VIEW reads.accounts AS SELECT * FROM projection_1.accounts;

CREATE OR REPLACE VIEW reads.transactions AS 
SELECT own_id, user_number, item_id, account_id, transaction_id, pending,
       round(amount_value / power(10::numeric, amount_scale), amount_scale) AS amount,
       amount_value, amount_scale, currency,
       date, authorized_date, datetime, name, merchant_name, merchant_entity_id, logo_url,
       category_primary, category_detailed, category_confidence, enriched_at, user_fields,
       removed_at, version, transfers, first_changeset, last_changeset, known_at, words, words_schema
  FROM projection_1.transactions;

CREATE OR REPLACE VIEW reads.ledger_accounts AS SELECT * FROM projection_1.ledger_accounts;

CREATE OR REPLACE VIEW reads.ledger_transfers AS 
SELECT t.own_id, t.number, t.user_number, t.debit, t.credit, round(t.amount / power(10::numeric, a.scale), a.scale)
       AS amount, t.currency, t.layer, t.reverses, t.effective, t.partition, t.changeset, t.known_at
  FROM projection_1.ledger_transfers t JOIN projection_1.ledger_accounts a ON a.id = t.debit;

CREATE OR REPLACE VIEW reads.ledger_balances AS 
SELECT a.id AS account, a.user_number, a.kind, a.reference, a.currency, b.layer,
       round(b.debits / power(10::numeric, a.scale), a.scale) AS debits,
       round(b.credits / power(10::numeric, a.scale), a.scale) AS credits,
       round((b.debits - b.credits) / power(10::numeric, a.scale), a.scale) AS balance
  FROM projection_1.ledger_balances b JOIN projection_1.ledger_accounts a ON a.id = b.account;

CREATE OR REPLACE VIEW reads.changesets AS SELECT * FROM projection_1.changesets;

CREATE OR REPLACE VIEW reads.positions AS SELECT * FROM projection_1.positions;

INSERT INTO tartan.alembic_version (version_num) VALUES ('0001') RETURNING tartan.alembic_version.version_num;

