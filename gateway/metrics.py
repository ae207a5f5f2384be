"""Metrics of the gateway. Labels are closed sets: never a tenant, a user or an Item."""

from prometheus_client import Counter, Gauge, Histogram

from runtime.metrics import LATENCY_BUCKETS_S

REQUESTS = Counter("tartan_api_requests", "API requests, by operation and HTTP status.", ["operation", "status"])
REQUEST_SECONDS = Histogram(
    "tartan_api_seconds",
    "Seconds from receiving an API request to its response, by operation.",
    ["operation"],
    buckets=LATENCY_BUCKETS_S,
)
BALANCE_REQUESTS = Counter(
    "tartan_balance_requests", "Requests for real-time balances that Plaid answered; Plaid bills each."
)
STREAMS = Gauge("tartan_streams", "Live streams of browsers that are open now.")
STREAM_CLOSES = Counter("tartan_stream_closes", "Live streams that the gateway closed, by close code.", ["code"])
STREAM_MESSAGES = Counter("tartan_stream_messages", "Messages queued for open live streams.")
STREAM_DELAY_SECONDS = Histogram(
    "tartan_stream_delay_seconds",
    "Seconds from a message's timestamp in Kafka until it is queued for live streams.",
    buckets=LATENCY_BUCKETS_S,
)
PUSH_SKIPPED = Counter("tartan_push_skipped", "Records of the topic push that were skipped, by reason.", ["reason"])
PUSH_RESTARTS = Counter(
    "tartan_push_restarts", "Restarts of the consumer of the topic push at the end of the log, by reason.", ["reason"]
)
PUSH_LAG = Gauge("tartan_push_lag", "Records of the topic push that are not read yet.")
