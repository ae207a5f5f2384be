"""Metrics of this stage; no label holds an id."""

from prometheus_client import Counter, Gauge, Histogram

from runtime.metrics import LATENCY_BUCKETS_S

WEBHOOKS = Counter("tartan_webhooks_read", "Webhooks read from the log, by the reaction to them", ["reaction"])
REPEATS = Counter("tartan_webhooks_repeated", "Webhooks without effect, because they were delivered before")
SYNC_RUNS = Counter("tartan_sync_runs", "Sync runs, by cause and outcome", ["cause", "outcome"])
SYNC_RUN_SECONDS = Histogram("tartan_sync_run_seconds", "Duration of a sync run", buckets=LATENCY_BUCKETS_S)
CHANGES = Counter("tartan_sync_changes", "Events appended to changesets", ["type"])
REFUSALS = Counter("tartan_plaid_refusals", "Errors that Plaid answered, by error class", ["action"])
GONE_SUSPECTED = Counter(
    "tartan_items_gone_suspected", "Items that Plaid called gone while too many others were, so not taken as gone"
)
FULL_RESYNCS = Counter(
    "tartan_full_resyncs",
    "Whole histories read again after a lost cursor, by reason, and whether all known accounts were there",
    ["because", "complete"],
)
CHUNKS = Counter("tartan_changeset_chunks", "Chunks appended of updates that are larger than a record")
REFRESHES = Counter("tartan_bank_refreshes", "Refreshes of a bank on demand, by Plaid's answer", ["answer"])
RESTARTS = Counter("tartan_sync_restarts", "Updates begun again from their first cursor")
WEBHOOK_TO_CHANGESET = Histogram(
    "tartan_webhook_to_changeset_seconds",
    "From a webhook's receipt to its changeset's append",
    buckets=LATENCY_BUCKETS_S,
)
IN_FLIGHT = Gauge("tartan_sync_in_flight", "Items under a lease of this process")
LEASES_EXPIRED = Counter("tartan_leases_expired", "Claims of Items whose lease was never given back")
LEASES_LOST = Counter("tartan_leases_lost", "Sync runs given up because their lease was lost")
