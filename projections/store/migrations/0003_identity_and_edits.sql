-- Add user overrides, versions of transactions and accounts, transaction matches, reviews and opening balances.
CREATE TABLE IF NOT EXISTS projection.transaction_versions (
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

CREATE INDEX IF NOT EXISTS transaction_versions_user ON projection.transaction_versions (user_number, until);

CREATE TABLE IF NOT EXISTS projection.account_versions (
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

CREATE TABLE IF NOT EXISTS projection.identity_links (
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

CREATE INDEX IF NOT EXISTS identity_links_own ON projection.identity_links (own_id);

CREATE TABLE IF NOT EXISTS projection.reviews (
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

CREATE INDEX IF NOT EXISTS reviews_open ON projection.reviews (user_number) WHERE state = 'open';

ALTER TABLE projection.items ADD COLUMN IF NOT EXISTS has_twins BOOLEAN DEFAULT 'false' NOT NULL;

ALTER TABLE projection.items ADD COLUMN IF NOT EXISTS waiting_edits JSONB;

ALTER TABLE projection.accounts ADD COLUMN IF NOT EXISTS opened BIGINT;

ALTER TABLE projection.accounts ADD COLUMN IF NOT EXISTS opening_transfers INTEGER DEFAULT '0' NOT NULL;

ALTER TABLE projection.accounts ADD COLUMN IF NOT EXISTS continues_item TEXT;

ALTER TABLE projection.accounts ADD COLUMN IF NOT EXISTS continues_account TEXT;

ALTER TABLE projection.accounts ADD COLUMN IF NOT EXISTS continued_by_item TEXT;

ALTER TABLE projection.accounts ADD COLUMN IF NOT EXISTS continued_by_account TEXT;

ALTER TABLE projection.transactions ADD COLUMN IF NOT EXISTS legs SMALLINT DEFAULT '1' NOT NULL;

ALTER TABLE projection.transactions ADD COLUMN IF NOT EXISTS review BYTEA;

UPDATE projection.transactions SET legs = 0 WHERE removed_at IS NOT NULL AND legs = 1;
