"""Parts that every process shares: settings, Kafka, Postgres, Plaid, users, scheduler, archive, incidents."""
