"""Reconciliation: compares each account with its bank now and then, starts the repair that fits, tells people. Shell.

It reads what is committed, in one snapshot, and costs the fold nothing. Several processes share the work.
"""

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import asyncpg
from prometheus_client import Counter, Gauge

from projections.reconcile import diagnosis, inputs, repairs
from projections.reconcile.repairs import COMPARE, STARTED, Policy, Step
from projections.reconcile.tie_out import CAUSES, GAP, TIED_OUT, Details, Facts, Verdict, compared
from runtime import logs, metrics
from runtime.operators import reconciliations
from runtime.operators.reconciliations import Checked, Gap, Key, Open
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
"""New accounts of one look: 100,000 linked at once have all had their first look within 20 minutes and an interval."""
ROUNDS_AN_INTERVAL = 10
"""With short intervals rounds come as often as this, so that no account waits much longer than it is told."""

CHECKS = Counter("tartan_reconciliation_checks", "Checks of accounts, by what they found", ["state"])
DISCREPANCIES = Counter("tartan_discrepancies", "Gaps that were found, by the cause that was first named", ["cause"])
OPEN = Gauge("tartan_discrepancies_open", "Gaps that are open now, by cause", ["cause"])

_log = logs.logger(__name__)


class Result(NamedTuple):
    """What came of one account's check."""

    key: Key
    facts: Facts
    verdict: Verdict
    step: Step


class Reconciler:
    """The periodic checks of one process, and those that somebody asks for."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self._pool = pool
        self._interval_s = settings.reconcile_interval_s
        self._alert_after_s = settings.gap_alert_after_s

    async def keep(self) -> None:
        """Check what is due, round by round, for ever. Raises: whatever is an error of this code."""
        loop = asyncio.get_running_loop()
        round_s = min(ROUND_S, self._interval_s / ROUNDS_AN_INTERVAL)
        enrol_s = min(ENROL_EVERY_S, self._interval_s / 2)
        enrolled_at = -enrol_s
        while True:
            try:
                if loop.time() - enrolled_at >= enrol_s:
                    enrolled_at = loop.time()
                    await self._look_around()
                await self.run_round()
            except AWAY as error:
                metrics.RETRIES.labels("projections", "reconciliation").inc()
                _log.warning("accounts are not reconciled", reason=reason(error))
            await asyncio.sleep(round_s)

    async def run_round(self) -> int:
        """Check the accounts that have waited longest, a bounded number of them. Gives how many."""
        async with borrowed(self._pool) as connection:
            keys = await reconciliations.claim(
                connection, interval_s=self._interval_s, accounts_max=ACCOUNTS_A_ROUND_MAX
            )
            found = await check(connection, keys, alert_after_s=self._alert_after_s) if keys else []
        for result in found:
            step = result.step
            if step.act == "open":
                _log.warning("an account does not tie out", item_id=result.key.item_id, cause=step.cause)
            elif step.act == "close":
                _log.info("a discrepancy is over", item_id=result.key.item_id, outcome=step.outcome)
        return len(keys)

    async def _look_around(self) -> None:
        async with borrowed(self._pool) as connection:
            await reconciliations.enrol(connection, interval_s=self._interval_s, accounts_max=ENROLLED_MAX)
            await reconciliations.purge(connection)
            counts = await reconciliations.open_counts(connection)
        for cause in CAUSES:
            OPEN.labels(cause).set(counts.get(cause, 0))


async def check(connection: asyncpg.Connection, keys: Sequence[Key], *, alert_after_s: float) -> list[Result]:
    """Check accounts now: compare, name causes, write what was found, start repairs.

    Accounts that are not there any more are forgotten, and absent from the answer.
    Idempotence: a check that is made twice counts a gap twice, and starts its repair once.
    """
    judged: list[tuple[Key, Facts, Verdict]] = []
    async with snapshot(connection):
        loaded = await inputs.load(connection, keys)
        for key, facts in loaded.facts.items():
            judged.append((key, facts, await _judged(connection, facts, loaded.users[key])))
    if loaded.missing:
        await reconciliations.forget(connection, loaded.missing)
    opened = await reconciliations.with_open_discrepancy(connection, keys)
    results, quiet = [], []
    for key, facts, verdict in judged:
        checked = _checked(facts, verdict, loaded.users[key], loaded.positions[key])
        CHECKS.labels(verdict.state).inc()
        if verdict.state == GAP or key in opened:
            results.append(Result(key, facts, verdict, await _follow(connection, checked, verdict, alert_after_s)))
        else:
            quiet.append(checked)
            results.append(Result(key, facts, verdict, repairs.NOTHING))
    await reconciliations.record_checks(connection, quiet)
    return results


def told(result: Result) -> dict[str, Any]:
    """A result for JSON: amounts as plain decimal text, with the ledger's sign (owed is negative)."""
    verdict, step = result.verdict, result.step
    return {
        "item_id": result.key.item_id,
        "account_id": result.key.account_id,
        "state": verdict.state,
        "cause": step.cause or (verdict.why if verdict.state == GAP else None),
        "reason": None if verdict.state == GAP else verdict.why,
        "currency": verdict.currency,
        "ledger": _text(verdict.ledger),
        "bank": _text(verdict.bank),
        "gap": _text(verdict.gap),
        "source": None if verdict.report is None else verdict.report.source,
        "evidence": dict(verdict.evidence),
        "repair": step.repair,
        "outcome": step.outcome,
    }


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else decimal_text(amount)


async def _judged(connection: asyncpg.Connection, facts: Facts, user: int) -> Verdict:
    verdict = compared(facts)
    if verdict.state != GAP:
        return verdict
    details = Details()
    if verdict.why is None:
        details = await inputs.load_details(connection, facts, verdict, user)
    return diagnosis.named(facts, details, verdict)


async def _follow(connection: asyncpg.Connection, checked: Checked, verdict: Verdict, alert_after_s: float) -> Step:
    """Do what follows from a gap, or from the end of one."""
    key = Key(checked.item_id, checked.account_id)
    async with reconciliations.account(connection, checked) as state:
        step = repairs.step(verdict, state.open, Policy(alert_after_s, state.compared_at), state.now)
        started = (
            step.start
            and step.repair in STARTED
            and await reconciliations.request_sync(connection, key.item_id, whole=step.repair == COMPARE)
        )
        match step.act:
            case "open":
                await reconciliations.begin(connection, checked, _found(verdict, step, started=started))
                assert step.cause is not None
                DISCREPANCIES.labels(step.cause).inc()
            case "keep":
                assert state.open is not None
                found = _found(verdict, step, started=started)
                await reconciliations.update(connection, state.open.discrepancy, found)
            case "close":
                await _close(connection, key, state.open, step)
        if step.told:
            await reconciliations.report_gap(connection, key, _words(step, verdict))
    return step


async def _close(connection: asyncpg.Connection, key: Key, known: Open | None, step: Step) -> None:
    assert known is not None
    assert step.outcome is not None
    await reconciliations.end(connection, known.discrepancy, step.outcome)
    await reconciliations.close_gap(connection, key)


def _checked(facts: Facts, verdict: Verdict, user: int, position: int) -> Checked:
    return Checked(
        facts.item_id,
        facts.account_id,
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


def _found(verdict: Verdict, step: Step, *, started: bool) -> Gap:
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


def _words(step: Step, verdict: Verdict) -> str:
    """What people are told: no amount, because alerts leave the house."""
    return f"{step.cause}, against the {verdict.against}; the last repair was: {step.repair}"
