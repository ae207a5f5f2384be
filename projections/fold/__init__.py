"""Fold: apply accepted records to the unit of work, and settle the difference as events and transfers."""
