"""`tartan chaos --rebuild`: kill a rebuild again and again while the log grows and applications read."""
