"""Contract of all stages: records and their encoding, the gate, topics, ids, money, times and errors. Pure."""
