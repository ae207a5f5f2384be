-- Add quotas, breakers, incidents, dead letters, unconfirmed removals and a clock that tests can set.
CREATE OR REPLACE FUNCTION tartan.clock() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(nullif(current_setting('tartan.now', true), '')::timestamptz, now());

CREATE TABLE IF NOT EXISTS tartan.buckets (
    endpoint TEXT NOT NULL, 
    item_id TEXT NOT NULL, 
    full_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (endpoint, item_id)
);

CREATE INDEX IF NOT EXISTS buckets_full_at ON tartan.buckets (full_at);

CREATE TABLE IF NOT EXISTS tartan.breakers (
    institution_id TEXT NOT NULL, 
    failures INTEGER DEFAULT '0' NOT NULL, 
    trips INTEGER DEFAULT '0' NOT NULL, 
    open_until TIMESTAMP WITH TIME ZONE, 
    last_code TEXT, 
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
    PRIMARY KEY (institution_id)
);

CREATE TABLE IF NOT EXISTS tartan.incidents (
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

CREATE UNIQUE INDEX IF NOT EXISTS incidents_open ON tartan.incidents (kind, subject) WHERE closed_at IS NULL;

CREATE INDEX IF NOT EXISTS incidents_untold ON tartan.incidents (incident) WHERE alerted_at IS NULL OR (closed_at IS NOT NULL AND end_alerted_at IS NULL);

CREATE TABLE IF NOT EXISTS tartan.dead_letters (
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

CREATE INDEX IF NOT EXISTS dead_letters_item ON tartan.dead_letters (item_id);

CREATE INDEX IF NOT EXISTS dead_letters_parked_at ON tartan.dead_letters (parked_at);

CREATE UNIQUE INDEX IF NOT EXISTS dead_letters_record ON tartan.dead_letters (topic, partition, source_offset) WHERE source_offset IS NOT NULL;

CREATE INDEX IF NOT EXISTS dead_letters_unpublished ON tartan.dead_letters (dead_letter) WHERE published_at IS NULL;

ALTER TABLE tartan.sync_state ADD COLUMN IF NOT EXISTS refresh_wanted BOOLEAN DEFAULT 'false' NOT NULL;

ALTER TABLE tartan.sync_state ADD COLUMN IF NOT EXISTS history_incomplete BOOLEAN DEFAULT 'false' NOT NULL;

ALTER TABLE tartan.sync_state ADD COLUMN IF NOT EXISTS refreshed_at TIMESTAMP WITH TIME ZONE;

ALTER TABLE tartan.sync_state ADD COLUMN IF NOT EXISTS bank_updated_at TIMESTAMP WITH TIME ZONE;

ALTER TABLE tartan.sync_state ADD COLUMN IF NOT EXISTS bank_seen_at TIMESTAMP WITH TIME ZONE;

ALTER TABLE tartan.sync_state ADD COLUMN IF NOT EXISTS swept_at TIMESTAMP WITH TIME ZONE;

ALTER TABLE tartan.sync_state ADD COLUMN IF NOT EXISTS ready_at TIMESTAMP WITH TIME ZONE GENERATED ALWAYS AS (CASE WHEN due_at IS NOT NULL THEN greatest(due_at, not_before) END) STORED;

ALTER TABLE projection.items ADD COLUMN IF NOT EXISTS missing_rows INTEGER DEFAULT '0' NOT NULL;

ALTER TABLE projection.items ADD COLUMN IF NOT EXISTS missing_since BYTEA;

ALTER TABLE projection.transactions ADD COLUMN IF NOT EXISTS missing_since BIGINT;

ALTER TABLE projection.changesets ADD COLUMN IF NOT EXISTS redriven_by BIGINT;

CREATE INDEX IF NOT EXISTS sync_state_institution ON tartan.sync_state (institution_id);

CREATE INDEX IF NOT EXISTS sync_state_ready ON tartan.sync_state (tenant, lane, ready_at) WHERE ready_at IS NOT NULL;

CREATE INDEX IF NOT EXISTS sync_state_sweep ON tartan.sync_state (swept_at);

CREATE INDEX IF NOT EXISTS sync_attempts_failed ON tartan.sync_attempts (attempt) WHERE outcome = 'failed';

CREATE INDEX IF NOT EXISTS sync_attempts_unlinked ON tartan.sync_attempts (started_at) WHERE outcome = 'unlinked';

CREATE INDEX IF NOT EXISTS transactions_missing ON projection.transactions (item_id) WHERE missing_since IS NOT NULL;

DROP INDEX IF EXISTS tartan.sync_state_due;

DROP INDEX IF EXISTS tartan.sync_state_oldest;

ALTER TABLE tartan.dead_letters ALTER COLUMN value SET STORAGE EXTERNAL;
