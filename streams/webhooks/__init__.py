"""Webhooks: decide what each one changes, and find those that never arrived."""
