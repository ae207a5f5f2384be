"""Model the bank: Items, accounts, transactions, their change logs, and generators that fill them from a seed."""
