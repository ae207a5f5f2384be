"""Invariants between the tables of one projection version, as queries with their counts and violations. Pure.

Each reads all rows, once: minutes on years of data, so they run on demand, in a snapshot, and lock nothing.
"""

from typing import NamedTuple

EXAMPLES_MAX = 5
"""Violations that are listed; the rest is counted."""


class Invariant(NamedTuple):
    """An invariant: `checked` selects one number, `wrong` one text a violation (ids, never amounts or names)."""

    name: str
    checked: str
    wrong: str

    @property
    def query(self) -> str:
        """Return SQL for one row: checked, violations, examples."""
        return f"""
WITH wrong(subject) AS MATERIALIZED ({self.wrong})
SELECT ({self.checked})::bigint AS checked, (SELECT count(*) FROM wrong) AS violations,
       ARRAY(SELECT subject FROM wrong ORDER BY subject LIMIT {EXAMPLES_MAX}) AS examples"""


def _of_rows(name: str, subject: str, table: str, *, wrong: str, scope: str = "true", joined: str = "") -> Invariant:
    """Return an invariant of single rows: all rows of `table` in `scope` are checked, `wrong` finds the violations."""
    return Invariant(
        name,
        f"SELECT count(*) FROM {table} WHERE {scope}",
        f"SELECT {subject} FROM {table} {joined} WHERE ({scope}) AND ({wrong})",
    )


_OWN_ID = "format('own id %s', encode(own_id, 'hex'))"
_SHOWN = "removed_at IS NULL AND review IS NULL"

LEDGER = (
    Invariant(
        "ledger_sums_to_zero",
        "SELECT count(*) FROM (SELECT DISTINCT user_number, currency FROM ledger_accounts) AS sums",
        """
SELECT format('user %s %s', a.user_number, a.currency)
  FROM ledger_balances b JOIN ledger_accounts a ON a.id = b.account
 GROUP BY a.user_number, a.currency HAVING sum(b.debits) <> sum(b.credits)""",
    ),
    Invariant(
        "balances_equal_their_transfers",
        "SELECT count(*) FROM ledger_balances",
        """
SELECT format('ledger account %s %s', encode(account, 'hex'), layer)
  FROM ledger_balances b FULL JOIN (
       SELECT account, layer, sum(debits) AS debits, sum(credits) AS credits FROM (
           SELECT debit AS account, layer, amount AS debits, 0 AS credits FROM ledger_transfers
            UNION ALL
           SELECT credit, layer, 0, amount FROM ledger_transfers) AS sides
        GROUP BY account, layer) AS moved USING (account, layer)
 WHERE coalesce(b.debits, 0) <> coalesce(moved.debits, 0) OR coalesce(b.credits, 0) <> coalesce(moved.credits, 0)""",
    ),
    _of_rows(
        "transfers_join_accounts_of_one_user_and_currency",
        "format('transfer %s.%s', encode(l.own_id, 'hex'), l.number)",
        "ledger_transfers l",
        joined="LEFT JOIN ledger_accounts d ON d.id = l.debit LEFT JOIN ledger_accounts c ON c.id = l.credit",
        wrong="""d.id IS NULL OR c.id IS NULL OR l.debit = l.credit OR l.amount < 0
    OR (d.user_number, c.user_number) IS DISTINCT FROM (l.user_number, l.user_number)
    OR (d.currency, c.currency) IS DISTINCT FROM (l.currency, l.currency)""",
    ),
    Invariant(
        "transfers_are_numbered_without_gap",
        "SELECT count(DISTINCT own_id) FROM ledger_transfers",
        """
SELECT format('own id %s', encode(own_id, 'hex'))
  FROM transactions t FULL JOIN (
       SELECT own_id, count(*) AS total, min(number) AS first, max(number) AS last
         FROM ledger_transfers GROUP BY own_id) AS l USING (own_id)
 WHERE coalesce(l.total, 0) <> coalesce(t.transfers, l.total, 0) OR l.first <> 1 OR l.last <> l.total""",
    ),
    # The ledger rounds decimals beyond its scale: by half a unit at most.
    Invariant(
        "shown_transactions_are_in_the_ledger_with_their_amounts",
        f"SELECT count(*) FROM transactions WHERE {_SHOWN}",
        """
SELECT format('own id %s', encode(t.own_id, 'hex'))
  FROM transactions t
  LEFT JOIN ledger_transfers l ON l.own_id = t.own_id AND l.number > t.transfers - t.active_transfers
  LEFT JOIN ledger_accounts bank ON bank.kind = 'bank' AND bank.reference = t.account_id
        AND bank.currency = t.currency AND bank.user_number = t.user_number
 WHERE t.removed_at IS NULL AND t.review IS NULL
 GROUP BY t.own_id
HAVING t.active_transfers < 1 OR count(l.number) <> t.active_transfers
    OR bool_or(l.reverses IS NOT NULL OR l.effective IS DISTINCT FROM t.date
               OR l.layer IS DISTINCT FROM CASE WHEN t.pending THEN 'pending' ELSE 'posted' END)
    OR coalesce(abs(sum(CASE bank.id WHEN l.credit THEN l.amount WHEN l.debit THEN -l.amount END)
       - t.amount_value * power(10::numeric, max(bank.scale) - t.amount_scale)) > 0.5, true)""",
    ),
    _of_rows(
        "removed_and_held_transactions_are_not_in_the_ledger",
        _OWN_ID,
        "transactions",
        scope="removed_at IS NOT NULL OR review IS NOT NULL",
        wrong="active_transfers <> 0",
    ),
    Invariant(
        "reversals_equal_what_they_reverse",
        "SELECT count(*) FROM ledger_transfers WHERE reverses IS NOT NULL",
        """
SELECT format('transfer %s.%s', encode(r.own_id, 'hex'), r.number)
  FROM ledger_transfers r
  LEFT JOIN ledger_transfers o ON o.own_id = r.own_id AND o.number = r.reverses
 WHERE r.reverses IS NOT NULL
   AND (o.reverses IS NOT NULL OR o.number >= r.number
        OR (r.debit, r.credit, r.amount, r.currency, r.layer, r.effective)
           IS DISTINCT FROM (o.credit, o.debit, o.amount, o.currency, o.layer, o.effective))
 UNION ALL
SELECT format('transfer %s.%s', encode(own_id, 'hex'), reverses) FROM ledger_transfers
 WHERE reverses IS NOT NULL GROUP BY own_id, reverses HAVING count(*) > 1
 UNION ALL
SELECT format('transfer %s.%s', encode(l.own_id, 'hex'), l.number)
  FROM transactions t JOIN ledger_transfers l USING (own_id)
  LEFT JOIN ledger_transfers r ON r.own_id = l.own_id AND r.reverses = l.number
 WHERE l.reverses IS NULL AND l.number <= t.transfers - t.active_transfers AND r.number IS NULL""",
    ),
)

INVARIANTS = (
    *LEDGER,
    Invariant(
        "versions_follow_each_other",
        "SELECT count(*) FROM transactions",
        """
SELECT format('own id %s', encode(own_id, 'hex'))
  FROM transactions t FULL JOIN (
       SELECT own_id, count(*) AS total, max(version) AS last, bool_or(is_broken) AS is_broken,
              max(until_changeset) AS until_changeset
         FROM (SELECT own_id, version, until_changeset,
                      (lead(changeset) OVER w, lead(known_at) OVER w) IS DISTINCT FROM (until_changeset, until)
                      AND lead(version) OVER w IS NOT NULL AS is_broken
                 FROM transaction_versions WINDOW w AS (PARTITION BY own_id ORDER BY version)) AS pairs
        GROUP BY own_id) AS v USING (own_id)
 WHERE coalesce(v.total, 0) IS DISTINCT FROM greatest(t.version - 1, 0) OR v.last <> v.total OR v.is_broken
    OR v.until_changeset <> t.last_changeset""",
    ),
    Invariant(
        "account_versions_are_numbered_without_gap",
        "SELECT count(*) FROM accounts",
        """
SELECT format('account %s of item %s', account_id, item_id)
  FROM accounts a FULL JOIN (
       SELECT item_id, account_id, count(*) AS total, max(version) AS last
         FROM account_versions GROUP BY item_id, account_id) AS v USING (item_id, account_id)
 WHERE a.version IS DISTINCT FROM v.total OR v.last <> v.total""",
    ),
    _of_rows(
        "links_point_to_transactions",
        "format('link %s %s', m.item_id, m.transaction_id)",
        "transaction_matches m",
        joined="LEFT JOIN transactions t ON t.own_id = m.own_id",
        wrong="t.own_id IS NULL OR t.user_number <> m.user_number",
    ),
    _of_rows(
        "held_transactions_wait_for_an_open_review",
        "format('own id %s', encode(t.own_id, 'hex'))",
        "transactions t",
        joined="LEFT JOIN reviews r ON r.id = t.review",
        scope="t.review IS NOT NULL",
        wrong="r.state IS DISTINCT FROM 'open' OR r.own_id <> t.own_id",
    ),
    _of_rows(
        "open_reviews_leave_a_transaction_counted",
        "format('review %s', encode(r.id, 'hex'))",
        "reviews r",
        scope="r.state = 'open'",
        wrong=f"""NOT EXISTS (SELECT FROM transactions t WHERE {_SHOWN} AND (t.own_id = r.own_id OR t.own_id IN (
           SELECT decode(candidate->>'own_id', 'hex') FROM jsonb_array_elements(r.candidates) AS candidate)))""",
    ),
    Invariant(
        "no_plaid_id_belongs_to_two_shown_transactions",
        f"SELECT count(*) FROM transactions WHERE {_SHOWN}",
        f"""
SELECT format('transaction %s of item %s', transaction_id, item_id) FROM transactions
 WHERE {_SHOWN} GROUP BY item_id, transaction_id HAVING count(*) > 1""",
    ),
    _of_rows(
        "changesets_lie_below_their_positions",
        "format('changeset %s.%s', c.partition, c.source_offset)",
        "changesets c",
        joined="LEFT JOIN positions p USING (partition)",
        wrong="p.position IS NULL OR c.source_offset >= p.position OR c.known_at > p.known_at",
    ),
    Invariant(
        "rows_name_changesets_that_are_there",
        "SELECT (SELECT count(*) FROM ledger_transfers) + (SELECT count(*) FROM transactions)",
        """
SELECT format('transfer %s.%s', encode(l.own_id, 'hex'), l.number)
  FROM ledger_transfers l
  LEFT JOIN changesets c ON c.partition = l.partition AND c.source_offset = l.changeset
 WHERE c.user_number IS DISTINCT FROM l.user_number
 UNION ALL
SELECT format('own id %s', encode(t.own_id, 'hex'))
  FROM transactions t LEFT JOIN items i USING (item_id)
  LEFT JOIN changesets first ON first.partition = i.partition AND first.source_offset = t.first_changeset
  LEFT JOIN changesets last ON last.partition = i.partition AND last.source_offset = t.last_changeset
 WHERE (first.user_number, last.user_number) IS DISTINCT FROM (t.user_number, t.user_number)""",
    ),
)
