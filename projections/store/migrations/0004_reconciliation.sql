-- Add reconciliations, discrepancies and the look-up of accounts by Plaid's id.
CREATE TABLE IF NOT EXISTS tartan.reconciliations (
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

CREATE INDEX IF NOT EXISTS reconciliations_next ON tartan.reconciliations (next_at);

CREATE TABLE IF NOT EXISTS tartan.discrepancies (
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

CREATE INDEX IF NOT EXISTS discrepancies_account ON tartan.discrepancies (item_id, account_id, discrepancy);

CREATE UNIQUE INDEX IF NOT EXISTS discrepancies_open ON tartan.discrepancies (item_id, account_id) WHERE resolved_at IS NULL;

CREATE INDEX IF NOT EXISTS discrepancies_resolved ON tartan.discrepancies (resolved_at) WHERE resolved_at IS NOT NULL;

CREATE INDEX IF NOT EXISTS accounts_account ON projection.accounts (account_id);
