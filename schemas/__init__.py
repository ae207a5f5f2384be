"""The contract: events, changesets and the gate, topics, ids, money, codec and errors. Pure."""
