"""Metrics of this stage. No ids in labels."""

from prometheus_client import Counter, Gauge, Histogram

from runtime.metrics import LATENCY_BUCKETS_S

WEBHOOKS = Counter("tartan_webhooks_read", "Webhooks read from the log, by what they asked for", ["reaction"])
REPEATS = Counter("tartan_webhooks_repeated", "Webhooks without effect, because they were delivered before")
PASSES = Counter("tartan_sync_runs", "Passes over an Item, by what became of them", ["cause", "outcome"])
PASS_SECONDS = Histogram("tartan_sync_run_seconds", "Duration of a pass", buckets=LATENCY_BUCKETS_S)
CHANGES = Counter("tartan_sync_changes", "Events appended to changesets", ["type"])
REFUSALS = Counter("tartan_plaid_refusals", "Errors of Plaid's, by what they ask for", ["action"])
SUSPECTED = Counter(
    "tartan_items_gone_suspected", "Items that Plaid called gone while too many others were, so not taken as gone"
)
RESTATED = Counter(
    "tartan_full_resyncs",
    "Whole histories read again after a lost cursor, by what lost it, and whether all known accounts were there",
    ["because", "complete"],
)
PARTS = Counter("tartan_changeset_chunks", "Parts appended of updates that are larger than a record")
REFRESHES = Counter("tartan_bank_refreshes", "Banks asked on demand, by Plaid's answer", ["answer"])
RESTARTS = Counter("tartan_sync_restarts", "Sync loops begun again from their first cursor")
WEBHOOK_TO_CHANGESET = Histogram(
    "tartan_webhook_to_changeset_seconds",
    "From a webhook's receipt to its changeset's append",
    buckets=LATENCY_BUCKETS_S,
)
IN_FLIGHT = Gauge("tartan_sync_in_flight", "Items under a lease of this process")
EXPIRED = Counter("tartan_leases_expired", "Claims of Items whose lease was never given back")
LOST = Counter("tartan_leases_lost", "Passes given up because their lease was lost")
