"""What must hold between the tables of one projection version, as queries: how much was looked at, and what is wrong.

Each looks at all rows, once: minutes on years of data, so they run on demand, in a snapshot, and lock nothing.
"""

from typing import NamedTuple

EXAMPLES_MAX = 5
"""Violations that are named; the rest is counted."""


class Invariant(NamedTuple):
    """`checked` gives one number, `wrong` one text a violation: ids, never amounts or names."""

    name: str
    checked: str
    wrong: str

    @property
    def query(self) -> str:
        """One row: checked, violations, examples."""
        return f"""
WITH wrong(what) AS MATERIALIZED ({self.wrong})
SELECT ({self.checked})::bigint AS checked, (SELECT count(*) FROM wrong) AS violations,
       ARRAY(SELECT what FROM wrong ORDER BY what LIMIT {EXAMPLES_MAX}) AS examples"""


_BALANCED = Invariant(
    "ledger_sums_to_zero",
    "SELECT count(*) FROM (SELECT DISTINCT user_number, currency FROM ledger_accounts) AS sums",
    """
SELECT format('user %s %s', a.user_number, a.currency)
  FROM ledger_balances b JOIN ledger_accounts a ON a.id = b.account
 GROUP BY a.user_number, a.currency HAVING sum(b.debits) <> sum(b.credits)""",
)

_SUMMED = Invariant(
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
)

_BETWEEN = Invariant(
    "transfers_join_accounts_of_one_user_and_currency",
    "SELECT count(*) FROM ledger_transfers",
    """
SELECT format('transfer %s.%s', encode(l.own_id, 'hex'), l.number)
  FROM ledger_transfers l
  LEFT JOIN ledger_accounts d ON d.id = l.debit
  LEFT JOIN ledger_accounts c ON c.id = l.credit
 WHERE d.id IS NULL OR c.id IS NULL OR l.debit = l.credit OR l.amount < 0
    OR (d.user_number, c.user_number) IS DISTINCT FROM (l.user_number, l.user_number)
    OR (d.currency, c.currency) IS DISTINCT FROM (l.currency, l.currency)""",
)

_NUMBERED = Invariant(
    "transfers_are_numbered_without_gap",
    "SELECT count(DISTINCT own_id) FROM ledger_transfers",
    """
SELECT format('own id %s', encode(own_id, 'hex'))
  FROM transactions t FULL JOIN (
       SELECT own_id, count(*) AS found, min(number) AS first, max(number) AS last
         FROM ledger_transfers GROUP BY own_id) AS l USING (own_id)
 WHERE coalesce(l.found, 0) <> coalesce(t.transfers, l.found, 0) OR l.first <> 1 OR l.last <> l.found""",
)

_LEGS = Invariant(
    "shown_transactions_are_in_the_ledger_with_their_amounts",
    "SELECT count(*) FROM transactions WHERE removed_at IS NULL AND review IS NULL",
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
    OR sum(CASE bank.id WHEN l.credit THEN l.amount WHEN l.debit THEN -l.amount END)
       IS DISTINCT FROM t.amount_value * power(10::numeric, max(bank.scale) - t.amount_scale)""",
)

_NO_LEGS = Invariant(
    "removed_and_held_transactions_are_not_in_the_ledger",
    "SELECT count(*) FROM transactions WHERE removed_at IS NOT NULL OR review IS NOT NULL",
    """
SELECT format('own id %s', encode(own_id, 'hex')) FROM transactions
 WHERE (removed_at IS NOT NULL OR review IS NOT NULL) AND active_transfers <> 0""",
)

_REVERSED = Invariant(
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
)

_VERSIONED = Invariant(
    "versions_follow_each_other",
    "SELECT count(*) FROM transactions",
    """
SELECT format('own id %s', encode(own_id, 'hex'))
  FROM transactions t FULL JOIN (
       SELECT own_id, count(*) AS found, max(version) AS last, bool_or(is_broken) AS is_broken,
              max(until_changeset) AS until_changeset
         FROM (SELECT own_id, version, until_changeset,
                      (lead(changeset) OVER w, lead(known_at) OVER w) IS DISTINCT FROM (until_changeset, until)
                      AND lead(version) OVER w IS NOT NULL AS is_broken
                 FROM transaction_versions WINDOW w AS (PARTITION BY own_id ORDER BY version)) AS pairs
        GROUP BY own_id) AS v USING (own_id)
 WHERE coalesce(v.found, 0) IS DISTINCT FROM greatest(t.version - 1, 0) OR v.last <> v.found OR v.is_broken
    OR v.until_changeset <> t.last_changeset""",
)

_REPORTED = Invariant(
    "account_versions_are_numbered_without_gap",
    "SELECT count(*) FROM accounts",
    """
SELECT format('account %s of item %s', account_id, item_id)
  FROM accounts a FULL JOIN (
       SELECT item_id, account_id, count(*) AS found, max(version) AS last
         FROM account_versions GROUP BY item_id, account_id) AS v USING (item_id, account_id)
 WHERE a.version IS DISTINCT FROM v.found OR v.last <> v.found""",
)

_LINKED = Invariant(
    "links_point_to_transactions",
    "SELECT count(*) FROM transaction_matches",
    """
SELECT format('link %s %s', i.item_id, i.transaction_id)
  FROM transaction_matches i LEFT JOIN transactions t ON t.own_id = i.own_id
 WHERE t.own_id IS NULL OR t.user_number <> i.user_number""",
)

_HELD = Invariant(
    "held_transactions_wait_for_an_open_review",
    "SELECT count(*) FROM transactions WHERE review IS NOT NULL",
    """
SELECT format('own id %s', encode(t.own_id, 'hex'))
  FROM transactions t LEFT JOIN reviews r ON r.id = t.review
 WHERE t.review IS NOT NULL AND (r.state IS DISTINCT FROM 'open' OR r.own_id <> t.own_id)""",
)

_ONCE = Invariant(
    "no_plaid_id_belongs_to_two_shown_transactions",
    "SELECT count(*) FROM transactions WHERE removed_at IS NULL AND review IS NULL",
    """
SELECT format('transaction %s of item %s', transaction_id, item_id) FROM transactions
 WHERE removed_at IS NULL AND review IS NULL GROUP BY item_id, transaction_id HAVING count(*) > 1""",
)

_PLACED = Invariant(
    "changesets_lie_below_their_positions",
    "SELECT count(*) FROM changesets",
    """
SELECT format('changeset %s.%s', c.partition, c.source_offset)
  FROM changesets c LEFT JOIN positions p USING (partition)
 WHERE p.position IS NULL OR c.source_offset >= p.position OR c.known_at > p.known_at""",
)

_CAUSED = Invariant(
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
)

LEDGER = (_BALANCED, _SUMMED, _BETWEEN, _NUMBERED, _LEGS, _NO_LEGS, _REVERSED)
INVARIANTS = (*LEDGER, _VERSIONED, _REPORTED, _LINKED, _HELD, _ONCE, _PLACED, _CAUSED)
