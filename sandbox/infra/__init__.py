"""Run Kafka, Postgres, the Plaid simulator and every stage as child processes of this machine."""
