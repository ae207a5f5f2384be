"""Stage ingest: verify each webhook POST and append it as one record of the topic `webhooks`."""
