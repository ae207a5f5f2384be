"""What every process shares: settings, Kafka, Postgres, Plaid, keys, sync_state, metrics, logs, lifecycle."""
