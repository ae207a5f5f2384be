"""Data types of the fold: rows, ledger entries and COPY fields, without I/O."""
