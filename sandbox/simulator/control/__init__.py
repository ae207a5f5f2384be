"""Control the simulator: its own HTTP API, injected faults, failure modes of Items and banks, scripted data."""
