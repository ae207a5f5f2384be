"""Webhook endpoint: a verified POST becomes one record of the topic `webhooks`."""
