"""Metrics of the gateway. Labels are closed sets: never a tenant, a user or an Item."""

from prometheus_client import Counter, Gauge, Histogram

from runtime.metrics import LATENCY_BUCKETS_S

REQUESTS = Counter("tartan_api_requests", "Requests by operation and status", ["operation", "status"])
REQUEST_SECONDS = Histogram("tartan_api_seconds", "From request to answer", ["operation"], buckets=LATENCY_BUCKETS_S)
BALANCE_REQUESTS = Counter("tartan_balance_requests", "Real-time balance requests that Plaid answered, and bills")
STREAMS = Gauge("tartan_streams", "Open streams of browsers")
STREAM_CLOSES = Counter("tartan_stream_closes", "Streams that the gateway closed, by close code", ["code"])
STREAM_MESSAGES = Counter("tartan_stream_messages", "Messages given to open streams")
STREAM_DELAY_SECONDS = Histogram(
    "tartan_stream_delay_seconds", "From a message's place in Kafka to the streams' queues", buckets=LATENCY_BUCKETS_S
)
PUSH_SKIPPED = Counter("tartan_push_skipped", "Records of push that were passed over, by reason", ["reason"])
PUSH_RESTARTS = Counter("tartan_push_restarts", "Times the reader of push began anew, by reason", ["reason"])
PUSH_LAG = Gauge("tartan_push_lag", "Records of push that are not read yet")
