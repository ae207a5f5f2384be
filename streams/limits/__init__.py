"""Plaid's quotas and the banks' breakers, as the sync runs use them."""
