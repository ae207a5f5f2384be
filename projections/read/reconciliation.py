"""Reconciliation for the gateway: check accounts on demand, and the causes of a discrepancy."""

from projections.reconcile.job import check as check
from projections.reconcile.tie_out import CAUSES as CAUSES
