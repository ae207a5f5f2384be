"""The world on one machine: Kafka and Postgres as child processes, the Plaid simulator, demo and benchmarks."""
