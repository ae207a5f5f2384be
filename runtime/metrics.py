"""Prometheus metrics of every stage. Labels have no ids: logs and tables have those."""

from prometheus_client import Counter, Gauge, Histogram

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

GATE = Counter("tartan_gate_records", "Records of changesets by the gate's verdict", ["reader", "verdict"])
POSITION = Gauge("tartan_position", "Next offset that a reader has not dealt with", ["reader", "partition"])
RECORDS = Counter("tartan_records", "Records read, by reader", ["reader"])
BATCHES = Counter("tartan_batches", "Transactions of a reader in Postgres", ["reader"])
BATCH_SECONDS = Histogram(
    "tartan_batch_seconds", "Duration of a reader's transaction", ["reader"], buckets=LATENCY_BUCKETS_S
)
RETRIES = Counter("tartan_retries", "Work done again because the world was late", ["stage", "what"])
WENT_BACK = Counter(
    "tartan_database_went_back", "Partitions whose position in Postgres lay below what had been committed", ["reader"]
)
NOT_FED = Counter("tartan_versions_not_fed", "Old versions of the projections that could not be fed any more")
QUARANTINED = Counter("tartan_quarantined_items", "Items quarantined, by the reader that quarantined them", ["reader"])
