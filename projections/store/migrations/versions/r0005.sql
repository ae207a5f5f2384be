ALTER TABLE projection.changesets ADD COLUMN IF NOT EXISTS body_fingerprint BYTEA;
