"""Define the views of schema `reads`, which readers query, over the tables of one projection version."""

from collections.abc import Sequence
from typing import NamedTuple

from projections.store.tables import READS_SCHEMA


class Column(NamedTuple):
    """A column of an existing view, with its type in SQL."""

    name: str
    type: str


def _major(amount: str, scale: str) -> str:
    # Exact: a quotient of numbers without decimals would keep 16 digits and round the rest.
    return f"round(round({amount}, {scale}) / power(10::numeric, {scale}), {scale})"


_TRANSACTIONS = f"""
SELECT own_id, user_number, item_id, account_id, transaction_id, pending,
       {_major("amount_value", "amount_scale")} AS amount,
       amount_value, amount_scale, currency,
       date, authorized_date, datetime, name, merchant_name, merchant_entity_id, logo_url,
       category_primary, category_detailed, category_confidence, enriched_at, user_fields,
       removed_at, version, transfers, first_changeset, last_changeset, known_at, payload, payload_schema,
       missing_since_offset, active_transfers, review, own_id_inherited
  FROM {{schema}}.transactions"""

# The chart of accounts: money comes in by these categories of Plaid, and is spent by all others.
_LEDGER_ACCOUNTS = """
SELECT l.id, l.user_number, l.kind, l.reference, l.currency, l.scale,
       CASE WHEN l.kind = 'equity' THEN 'equity'
            WHEN l.kind = 'category' AND l.reference IN ('INCOME', 'TRANSFER_IN', 'LOAN_DISBURSEMENTS') THEN 'income'
            WHEN l.kind = 'category' THEN 'expense'
            WHEN EXISTS (SELECT FROM {schema}.accounts a
                          WHERE a.user_number = l.user_number AND a.account_id = l.reference
                            AND a.type IN ('credit', 'loan')) THEN 'liability'
            ELSE 'asset' END AS class
  FROM {schema}.ledger_accounts l"""

_LEDGER_TRANSFERS = f"""
SELECT t.own_id, t.number, t.user_number, t.debit, t.credit, {_major("t.amount", "a.scale")}
       AS amount, t.currency, t.layer, t.reverses, t.effective, t.partition, t.changeset, t.known_at
  FROM {{schema}}.ledger_transfers t JOIN {{schema}}.ledger_accounts a ON a.id = t.debit"""

_LEDGER_BALANCES = f"""
SELECT a.id AS account, a.user_number, a.kind, a.reference, a.currency, b.layer,
       {_major("b.debits", "a.scale")} AS debits,
       {_major("b.credits", "a.scale")} AS credits,
       {_major("b.debits - b.credits", "a.scale")} AS balance
  FROM {{schema}}.ledger_balances b JOIN {{schema}}.ledger_accounts a ON a.id = b.account"""

_WITHHELD = "SELECT item_id, partition, source_offset FROM {schema}.withheld"

_PLAIN = "SELECT * FROM {schema}.{name}"

VIEWS = {
    "items": _PLAIN,
    "accounts": _PLAIN,
    "transactions": _TRANSACTIONS,
    "ledger_accounts": _LEDGER_ACCOUNTS,
    "ledger_transfers": _LEDGER_TRANSFERS,
    "ledger_balances": _LEDGER_BALANCES,
    "transaction_versions": _PLAIN,
    "account_versions": _PLAIN,
    "transaction_matches": _PLAIN,
    "reviews": _PLAIN,
    "changesets": _PLAIN,
    "positions": _PLAIN,
    "withheld": _WITHHELD,
}


def statements(schema: str) -> list[str]:
    """Return the statements that point the views of `reads` at the tables of `schema`."""
    return [_statement(name, select) for name, select in selects(schema).items()]


def selects(schema: str) -> dict[str, str]:
    """Return the SELECT of each view of `reads` over the tables of `schema`."""
    return {name: select.format(schema=schema, name=name) for name, select in VIEWS.items()}


def replacement(name: str, select: str, given: Sequence[str], shown: Sequence[Column]) -> str:
    """Return the statement that replaces the SELECT of a view.

    A view's columns are a contract: new ones come last, and one that this version lacks is null in it.

    Args:
        name: Of the view.
        select: The new SELECT.
        given: The columns of `select`.
        shown: The present columns of the view.
    """
    if [column.name for column in shown] == list(given[: len(shown)]):
        return _statement(name, select)
    columns = [
        f'"{column.name}"' if column.name in given else f'NULL::{column.type} AS "{column.name}"' for column in shown
    ]
    known = {column.name for column in shown}
    columns += [f'"{column}"' for column in given if column not in known]
    return _statement(name, f"SELECT {', '.join(columns)} FROM ({select}) AS given")


def _statement(name: str, select: str) -> str:
    return f"CREATE OR REPLACE VIEW {READS_SCHEMA}.{name} AS {select}"
