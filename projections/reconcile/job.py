"""Reconciliation job: compare each account with its bank periodically, start repairs, alert people. Shell.

It reads committed rows, in one snapshot, and costs the fold nothing. Several processes share the work.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg
from prometheus_client import Counter, Gauge

from projections.reconcile import diagnosis, inputs, repairs
from projections.reconcile.repairs import COMPARE, STARTED, Policy, Step
from projections.reconcile.tie_out import CAUSES, GAP, TIED_OUT, Details, Facts, Verdict, compare
from runtime import logs, metrics
from runtime.operators import reconciliations
from runtime.operators.reconciliations import Checked, Gap, Key
from runtime.postgres.errors import AWAY, reason
from runtime.postgres.pool import borrowed, snapshot
from runtime.settings import Settings
from schemas.money import decimal_text

ROUND_S = 5.0
ACCOUNTS_A_ROUND_MAX = 200
"""Accounts of one round: 40 a second, 144,000 an hour. A round reads for about 0.2 s where each has 1,000 rows, and
locks nothing that others wait for."""
ENROL_EVERY_S = 60.0
ENROLLED_MAX = 5_000
"""New accounts at once: 100,000 linked together all have their first check within 20 minutes and an interval."""
ROUNDS_AN_INTERVAL = 10
"""With short intervals rounds come this often, so that no account waits much longer than its interval."""

CHECKS = Counter("tartan_reconciliation_checks", "Checks of accounts, by their result", ["state"])
DISCREPANCIES = Counter("tartan_discrepancies", "Gaps between ledger and bank, by their first cause", ["cause"])
OPEN = Gauge("tartan_discrepancies_open", "Gaps that are open now, by cause", ["cause"])

_log = logs.logger(__name__)


class Result(NamedTuple):
    """Result of one account's check."""

    key: Key
    facts: Facts
    verdict: Verdict
    step: Step

    def to_json(self) -> dict[str, Any]:
        """Return the result for JSON: amounts as plain decimal text, with the ledger's sign (owed is negative)."""
        verdict, step = self.verdict, self.step
        amounts = {"ledger": verdict.ledger, "bank": verdict.bank, "gap": verdict.gap}
        return {
            "item_id": self.key.item_id,
            "account_id": self.key.account_id,
            "state": verdict.state,
            "cause": step.cause or (verdict.why if verdict.state == GAP else None),
            "reason": None if verdict.state == GAP else verdict.why,
            "currency": verdict.currency,
            **{name: None if amount is None else decimal_text(amount) for name, amount in amounts.items()},
            "source": None if verdict.report is None else verdict.report.source,
            "evidence": dict(verdict.evidence),
            "repair": step.repair,
            "outcome": step.outcome,
        }


class Reconciler:
    """The periodic checks of one process, and checks on demand."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self._pool = pool
        self._interval_s = settings.reconcile_interval_s
        self._alert_after_s = settings.gap_alert_after_s

    async def keep(self) -> None:
        """Check due accounts, round by round, for ever. Raises: only errors of this code."""
        loop = asyncio.get_running_loop()
        round_s = min(ROUND_S, self._interval_s / ROUNDS_AN_INTERVAL)
        enrol_s = min(ENROL_EVERY_S, self._interval_s / 2)
        enrolled_at = -enrol_s
        while True:
            try:
                if loop.time() - enrolled_at >= enrol_s:
                    enrolled_at = loop.time()
                    await self._enrol()
                await self.run_round()
            except AWAY as error:
                metrics.RETRIES.labels("projections", "reconciliation").inc()
                _log.warning("accounts are not reconciled", reason=reason(error))
            await asyncio.sleep(round_s)

    async def run_round(self) -> int:
        """Check a bounded number of accounts that have waited longest; return how many."""
        async with borrowed(self._pool) as connection:
            keys = await reconciliations.claim(
                connection, interval_s=self._interval_s, accounts_max=ACCOUNTS_A_ROUND_MAX
            )
            results = await check(connection, keys, alert_after_s=self._alert_after_s) if keys else []
        for key, _, _, step in results:
            if step.act == "open":
                _log.warning("an account does not tie out", item_id=key.item_id, cause=step.cause)
            elif step.act == "close":
                _log.info("a discrepancy is over", item_id=key.item_id, outcome=step.outcome)
        return len(keys)

    async def _enrol(self) -> None:
        async with borrowed(self._pool) as connection:
            await reconciliations.enrol(connection, interval_s=self._interval_s, accounts_max=ENROLLED_MAX)
            await reconciliations.purge(connection)
            counts = await reconciliations.open_counts(connection)
        for cause in CAUSES:
            OPEN.labels(cause).set(counts.get(cause, 0))


async def check(connection: asyncpg.Connection, keys: Sequence[Key], *, alert_after_s: float) -> list[Result]:
    """Check accounts now: compare, diagnose, store the result, start repairs.

    Accounts that do not exist any more are deleted from the records, and absent from the results.
    Idempotence: a repeated check counts a gap twice, and starts its repair once.
    """
    async with snapshot(connection):
        loaded = await inputs.load(connection, keys)
        verdicts = {key: await _judge(connection, facts, loaded.users[key]) for key, facts in loaded.facts.items()}
    if loaded.missing:
        await reconciliations.forget(connection, loaded.missing)
    opened = await reconciliations.with_open_discrepancy(connection, keys)
    results, quiet = [], []
    for key, verdict in verdicts.items():
        checked = _checked(key, verdict, loaded.users[key], loaded.positions[key])
        CHECKS.labels(verdict.state).inc()
        step = repairs.NOTHING
        if verdict.state == GAP or key in opened:
            step = await _follow(connection, key, checked, verdict, alert_after_s)
        else:
            quiet.append(checked)
        results.append(Result(key, loaded.facts[key], verdict, step))
    await reconciliations.record_checks(connection, quiet)
    return results


async def _judge(connection: asyncpg.Connection, facts: Facts, user: int) -> Verdict:
    verdict = compare(facts)
    if verdict.state != GAP:
        return verdict
    details = Details() if verdict.why else await inputs.load_details(connection, facts, verdict, user)
    return diagnosis.diagnose(facts, details, verdict)


async def _follow(
    connection: asyncpg.Connection, key: Key, checked: Checked, verdict: Verdict, alert_after_s: float
) -> Step:
    """Store a gap or the end of one, start its repair and alert people."""
    async with reconciliations.account(connection, checked) as state:
        step = repairs.step(verdict, state.open, Policy(alert_after_s, state.compared_at), state.now)
        started = (
            step.start
            and step.repair in STARTED
            and await reconciliations.request_sync(connection, key.item_id, whole=step.repair == COMPARE)
        )
        match step.act:
            case "open":
                await reconciliations.begin(connection, checked, _gap(verdict, step, started=started))
                DISCREPANCIES.labels(step.cause).inc()
            case "keep":
                assert state.open is not None
                await reconciliations.update(connection, state.open.discrepancy, _gap(verdict, step, started=started))
            case "close":
                assert state.open is not None
                assert step.outcome is not None
                await reconciliations.end(connection, state.open.discrepancy, step.outcome)
                await reconciliations.close_gap(connection, key)
        if step.alert:
            # Without the amount, because alerts go to other companies' systems.
            detail = f"{step.cause}, against the {verdict.against}; the last repair was: {step.repair}"
            await reconciliations.report_gap(connection, key, detail)
    return step


def _checked(key: Key, verdict: Verdict, user: int, position: int) -> Checked:
    return Checked(
        *key,
        user,
        verdict.state,
        verdict.why,
        verdict.currency,
        verdict.ledger,
        verdict.bank,
        verdict.gap,
        None if verdict.report is None else verdict.report.source,
        position if verdict.state == TIED_OUT else None,
    )


def _gap(verdict: Verdict, step: Step, *, started: bool) -> Gap:
    assert step.cause is not None
    assert step.repair is not None
    return Gap(
        step.cause,
        verdict.against,
        verdict.currency,
        verdict.ledger,
        verdict.bank,
        verdict.gap,
        verdict.evidence,
        step.repair,
        step.outcome,
        step.checks_after,
        started,
    )
