"""Incidents of sync runs: which one the outcome of a run opens, and which ones it closes."""

import asyncpg

from runtime.incidents import incidents
from runtime.plaid.models import OUTAGE_CODES
from runtime.scheduler.stop_reasons import GONE, QUARANTINED, REFUSED
from runtime.scheduler.types import CURSOR_LOST, Claimed, Released

FAILING_AFTER = 5
"""Failures in a row before a sync counts as failing: the quick attempts are over, the next ones are hours apart."""

_BY_STOP_REASON = {QUARANTINED: incidents.ITEM_QUARANTINED, REFUSED: incidents.ITEM_REFUSED, GONE: incidents.ITEM_GONE}
_CLIENT = "client"
_SUSPECTED_GONE = incidents.TOO_MANY_GONE
"""Error code of a run whose Item Plaid called gone while too many others were."""
_CLOSED_BY_RUN = (incidents.SYNC_FAILING, incidents.ITEM_REFUSED, incidents.ITEM_GONE)
"""A quarantine is ended by its redrive alone: `incidents.close_ended` reads that."""
_RATE_LIMITED = "RATE_LIMIT_EXCEEDED"


async def record(connection: asyncpg.Connection, claimed: Claimed, result: Released) -> None:
    """Open or close the incidents of an Item by the outcome of its sync run.

    Idempotence: each call with the same outcome counts the same incident once more.
    """
    if (result.error or {}).get("code") == _SUSPECTED_GONE:
        await incidents.report(connection, incidents.TOO_MANY_GONE, _CLIENT, _error_text(result))
    kind = _kind(claimed, result)
    if kind is not None and kind != incidents.ITEM_QUARANTINED:  # opened in the transaction that quarantines the Item
        await incidents.report(connection, kind, claimed.item_id, _error_text(result))
    if result.stopped is None and (result.outcome == "failed" or result.attempts):
        return  # nothing has ended while attempts fail, or wait for a quota
    await incidents.close_all(connection, [other for other in _CLOSED_BY_RUN if other != kind], claimed.item_id)


def _kind(claimed: Claimed, result: Released) -> str | None:
    if result.stopped is not None:
        return _BY_STOP_REASON.get(result.stopped)
    error = result.error or {}
    # A full resync is no failure; a full resync again and again is one.
    cursor_lost = error.get("code") == CURSOR_LOST and result.attempts > FAILING_AFTER
    if not cursor_lost and (result.outcome != "failed" or result.attempts < FAILING_AFTER):
        return None
    bank_down = error.get("code") in OUTAGE_CODES and claimed.institution_id is not None
    has_own_incident = bank_down or error.get("detail") == _RATE_LIMITED or error.get("code") == _SUSPECTED_GONE
    return None if has_own_incident else incidents.SYNC_FAILING


def _error_text(result: Released) -> str:
    error = result.error or {}
    return ": ".join(str(error[name]) for name in ("code", "detail") if error.get(name))
