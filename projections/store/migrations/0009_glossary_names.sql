-- Rename tables and columns to the words of the glossary; no row changes but for the stop reason `quarantined`.
ALTER TABLE tartan.sync_attempts RENAME TO sync_runs;
ALTER TABLE tartan.sync_runs RENAME COLUMN attempt TO run;
ALTER SEQUENCE tartan.sync_attempts_attempt_seq RENAME TO sync_runs_run_seq;
ALTER INDEX tartan.sync_attempts_pkey RENAME TO sync_runs_pkey;
ALTER INDEX tartan.sync_attempts_item RENAME TO sync_runs_item;
ALTER INDEX tartan.sync_attempts_failed RENAME TO sync_runs_failed;
ALTER INDEX tartan.sync_attempts_unlinked RENAME TO sync_runs_unlinked;

ALTER TABLE tartan.parkings RENAME TO quarantines;
ALTER TABLE tartan.quarantines RENAME COLUMN parked_at TO quarantined_at;
ALTER INDEX tartan.parkings_pkey RENAME TO quarantines_pkey;
ALTER TABLE tartan.dead_letters RENAME COLUMN parked_at TO quarantined_at;
ALTER INDEX tartan.dead_letters_parked_at RENAME TO dead_letters_quarantined_at;
UPDATE tartan.sync_state SET stopped = 'quarantined' WHERE stopped = 'parked';
UPDATE tartan.incidents SET kind = replace(kind, 'parked', 'quarantined') WHERE position('parked' IN kind) > 0;

ALTER TABLE tartan.floors RENAME TO published_checkpoints;
ALTER INDEX tartan.floors_pkey RENAME TO published_checkpoints_pkey;
ALTER TABLE tartan.rebuilds RENAME COLUMN floors TO checkpoints;

ALTER TABLE tartan.buckets RENAME TO rate_limit_buckets;
ALTER TABLE tartan.rate_limit_buckets RENAME COLUMN full_at TO tat;
ALTER INDEX tartan.buckets_pkey RENAME TO rate_limit_buckets_pkey;
ALTER INDEX tartan.buckets_full_at RENAME TO rate_limit_buckets_tat;

ALTER TABLE tartan.repeats RENAME COLUMN seen_at TO observed_at;
ALTER INDEX tartan.repeats_seen_at RENAME TO repeats_observed_at;
ALTER TABLE tartan.sync_state RENAME COLUMN bank_seen_at TO bank_observed_at;

DO $$
DECLARE
    version text;
    change text;
BEGIN
    FOR version IN
        SELECT nspname FROM pg_namespace WHERE nspname IN ('projection', 'projection_next', 'projection_old')
    LOOP
        FOREACH change IN ARRAY ARRAY[
            'TABLE version.items RENAME COLUMN words TO payload',
            'TABLE version.items RENAME COLUMN words_schema TO payload_schema',
            'TABLE version.items RENAME COLUMN missing_since TO missing_changeset_id',
            'TABLE version.items RENAME COLUMN has_twins TO has_linked_items',
            'TABLE version.accounts RENAME COLUMN cached_words TO cached_payload',
            'TABLE version.accounts RENAME COLUMN cached_schema TO cached_payload_schema',
            'TABLE version.accounts RENAME COLUMN realtime_words TO realtime_payload',
            'TABLE version.accounts RENAME COLUMN realtime_schema TO realtime_payload_schema',
            'TABLE version.transactions RENAME COLUMN words TO payload',
            'TABLE version.transactions RENAME COLUMN words_schema TO payload_schema',
            'TABLE version.transactions RENAME COLUMN chained TO own_id_inherited',
            'TABLE version.transactions RENAME COLUMN legs TO active_transfers',
            'TABLE version.transactions RENAME COLUMN missing_since TO missing_since_offset',
            'INDEX version.transactions_chained RENAME TO transactions_inherited',
            'TABLE version.transaction_versions RENAME COLUMN words TO payload',
            'TABLE version.transaction_versions RENAME COLUMN words_schema TO payload_schema',
            'TABLE version.account_versions RENAME COLUMN words TO payload',
            'TABLE version.account_versions RENAME COLUMN words_schema TO payload_schema',
            'TABLE version.identity_links RENAME TO transaction_matches',
            'INDEX version.identity_links_pkey RENAME TO transaction_matches_pkey',
            'INDEX version.identity_links_own RENAME TO transaction_matches_own',
            'TABLE version.changesets RENAME COLUMN said_at TO produced_at',
            'TABLE version.parts RENAME TO chunks',
            'INDEX version.parts_pkey RENAME TO chunks_pkey'
        ] LOOP
            EXECUTE 'ALTER ' || replace(change, 'version.', quote_ident(version) || '.');
        END LOOP;
    END LOOP;
END $$;

-- Views keep their old output names when a table's column is renamed. A fresh database has no views yet, and views of
-- earlier releases lack some of these columns.
ALTER VIEW IF EXISTS reads.identity_links RENAME TO transaction_matches;
DO $$
DECLARE
    renamed record;
BEGIN
    FOR renamed IN
        SELECT c.table_name, c.column_name, names.new
          FROM information_schema.columns c
          JOIN (VALUES
                ('items', 'words', 'payload'), ('items', 'words_schema', 'payload_schema'),
                ('items', 'missing_since', 'missing_changeset_id'), ('items', 'has_twins', 'has_linked_items'),
                ('accounts', 'cached_words', 'cached_payload'), ('accounts', 'cached_schema', 'cached_payload_schema'),
                ('accounts', 'realtime_words', 'realtime_payload'),
                ('accounts', 'realtime_schema', 'realtime_payload_schema'),
                ('transactions', 'words', 'payload'), ('transactions', 'words_schema', 'payload_schema'),
                ('transactions', 'chained', 'own_id_inherited'),
                ('transactions', 'legs', 'active_transfers'), ('transactions', 'missing_since', 'missing_since_offset'),
                ('transaction_versions', 'words', 'payload'), ('transaction_versions', 'words_schema', 'payload_schema'),
                ('account_versions', 'words', 'payload'), ('account_versions', 'words_schema', 'payload_schema'),
                ('changesets', 'said_at', 'produced_at')
               ) AS names (view, old, new) ON c.table_name = names.view AND c.column_name = names.old
         WHERE c.table_schema = 'reads'
    LOOP
        EXECUTE 'ALTER VIEW reads.' || quote_ident(renamed.table_name) || ' RENAME COLUMN '
            || quote_ident(renamed.column_name) || ' TO ' || quote_ident(renamed.new);
    END LOOP;
END $$;
