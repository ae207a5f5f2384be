"""Demonstrations for people: a live run, a sandbox that stays, a first Item, short runs that verify and rebuild."""
