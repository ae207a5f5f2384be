"""Run simulated processes: virtual time, network, Kafka, workers, and the monitor of their leases."""
