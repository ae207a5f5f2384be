"""Metrics of the webhook endpoint; labels are closed sets, never an Item, a user or a key id."""

from prometheus_client import Counter, Gauge, Histogram

from runtime.metrics import LATENCY_BUCKETS_S

ANSWERS = Counter("tartan_webhook_answers", "Webhooks by status answered and reason", ["status", "reason"])
APPENDED = Counter("tartan_webhooks_appended", "Webhooks in the log before they were answered, by type", ["type"])
LATE_APPENDS = Counter(
    "tartan_webhook_late_appends", "Appends that outlived their answer (429), by how they ended", ["outcome"]
)
ANSWER_SECONDS = Histogram("tartan_webhook_answer_seconds", "From request to answer", buckets=LATENCY_BUCKETS_S)
IN_FLIGHT = Gauge("tartan_webhooks_in_flight", "Webhooks being handled, and appends that outlived their answer")
KEY_FETCHES = Counter("tartan_webhook_key_fetches", "Keys requested from Plaid, by outcome", ["outcome"])
CLOCK_ALARMS = Counter(
    "tartan_webhook_clock_alarms", "Genuine webhooks issued more than 2 s in our future: our clock is late"
)
CLOCK_AHEAD_SECONDS = Gauge("tartan_webhook_clock_ahead_seconds", "How far the last genuine webhook was in our future")
