"""Kafka: producer and log reads, the Faust app, topics, log continuity, schema registry."""
