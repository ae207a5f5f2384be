"""Alerts: send incidents to the operators, once each."""
