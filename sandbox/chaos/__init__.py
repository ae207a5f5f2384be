"""`tartan chaos`: kill, stop and cut off real processes under load, then compare their data with the truth."""
