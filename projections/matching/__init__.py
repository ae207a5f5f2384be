"""Matching: find accounts and transactions that the bank reports under several ids."""
