"""Commands and records of operators: redrives, decisions, quarantines and reconciliations."""
