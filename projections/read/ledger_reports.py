"""Ledger reports of a user: the accounts' balances at a date, as known at a time, and the turnover of each month.

Shape: amounts are exact decimal text in major units. Balances are debits less credits: assets are positive,
liabilities negative. Layers are separate, so pending is never part of posted.
"""

import datetime
from decimal import Decimal

import asyncpg

from projections.model.book import PENDING, POSTED
from projections.read import as_of
from projections.read.queries import OF_USER, Row, ledger_balances, opening_ids
from schemas.money import decimal_text

FOREVER = datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC)
"""Later than each record's time: all that is known now."""


async def balances(
    connection: asyncpg.Connection,
    user: int,
    *,
    effective_at: datetime.date | None = None,
    known_at: datetime.datetime | None = None,
) -> list[Row]:
    """Return each ledger account of a user with its class and the balances of both layers.

    `effective_at` leaves out transfers with a later date, `known_at` those recorded later; without both the stored
    balances are read, which is cheap.
    """
    if effective_at is None and known_at is None:
        rows = await ledger_balances(connection, user)
    else:
        rows = await as_of.ledger_balances(connection, user, known_at or FOREVER, effective_at)
    classes = {row["id"]: row["class"] for row in await connection.fetch(_CLASSES, user)}
    accounts: dict[str, Row] = {}
    for row in rows:
        account = accounts.setdefault(
            row["account"],
            {
                **{name: row[name] for name in ("account", "kind", "reference", "currency")},
                "class": classes[bytes.fromhex(row["account"])],
                POSTED: "0",
                PENDING: "0",
            },
        )
        account[row["layer"]] = decimal_text(Decimal(row["balance"]))
    return list(accounts.values())


async def turnover(
    connection: asyncpg.Connection, user: int, *, since: datetime.date | None = None, until: datetime.date | None = None
) -> list[Row]:
    """Return spent, received and net (spent less received) by month, currency and category; both dates are inclusive.

    A correction counts as if the wrong transfer had never been: it is no turnover.
    """
    rows = await connection.fetch(_TURNOVER, user, await opening_ids(connection, user), since, until)
    return [
        {
            "month": row["month"].isoformat()[:7],
            **{name: row[name] for name in ("currency", "category", "class", "layer")},
            **{name: decimal_text(row[name]) for name in ("spent", "received", "net")},
        }
        for row in rows
    ]


_CLASSES = "SELECT id, class FROM reads.ledger_accounts WHERE user_number = $1"

# A reversal is on the other side than its transfer: it is deducted there instead of added here. Openings have no
# category. Summed by both sides before the join with the accounts, which are few.
_TURNOVER = f"""
WITH moved AS (
    SELECT date_trunc('month', t.effective)::date AS month, t.layer, t.debit, t.credit, t.reverses IS NULL AS counts,
           sum(t.amount) AS amount
      FROM {OF_USER} JOIN reads.ledger_transfers t USING (own_id)
     WHERE t.effective >= coalesce($3::date, '-infinity') AND t.effective <= coalesce($4::date, 'infinity')
     GROUP BY 1, 2, 3, 4, 5),
sides AS (
    SELECT month, layer, debit AS account, CASE WHEN counts THEN amount ELSE 0 END AS spent,
           CASE WHEN counts THEN 0 ELSE -amount END AS received FROM moved
     UNION ALL
    SELECT month, layer, credit, CASE WHEN counts THEN 0 ELSE -amount END, CASE WHEN counts THEN amount ELSE 0 END
      FROM moved)
SELECT s.month, a.currency, a.reference AS category, a.class, s.layer, sum(s.spent) AS spent,
       sum(s.received) AS received, sum(s.spent) - sum(s.received) AS net
  FROM sides s JOIN reads.ledger_accounts a ON a.id = s.account
 WHERE a.kind = 'category'
 GROUP BY s.month, a.currency, a.reference, a.class, s.layer HAVING sum(s.spent) <> 0 OR sum(s.received) <> 0
 ORDER BY s.month, a.currency, a.reference, s.layer"""
