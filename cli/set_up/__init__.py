"""Commands that set an installation up: Kafka's topics and the schemas of the events."""
