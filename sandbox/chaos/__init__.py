"""`tartan chaos`: real processes, killed, stopped and cut off under load, and afterwards compared with the truth."""
