"""Users: their keys, the vault that wraps them, and the commands that users append to the log."""
