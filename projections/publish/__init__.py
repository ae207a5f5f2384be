"""Publish committed net events to Kafka, notify operators, and expire or republish the stored events."""
