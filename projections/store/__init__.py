"""Store the projections in Postgres: tables, views and migrations, and the reads and writes of a batch."""
