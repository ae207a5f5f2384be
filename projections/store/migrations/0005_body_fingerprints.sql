-- Add the fingerprint of the request behind a command.
ALTER TABLE projection.changesets ADD COLUMN IF NOT EXISTS body_fingerprint BYTEA;
