"""What every process shares: settings, Kafka, Postgres, the Plaid client, keys, sync_state, metrics, logs, lifecycle."""
