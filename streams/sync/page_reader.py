"""Reading one update of Plaid's from its first page to its last. Shell.

An update is taken whole or not at all: a failure in the middle, whatever it is, leads back to the first cursor.
Source: PLAID.md 1.2, points 5 and 6; specification of /transactions/sync.
"""

from runtime import logs
from runtime.crash_points import CrashPoint, reach
from runtime.plaid.client import PlaidRefused
from runtime.plaid.models import SyncPage
from schemas.errors import Retry
from streams import metrics
from streams.ports import Bank, Random, Sleep
from streams.sync import backoff, plaid_errors
from streams.sync.pages import is_ready
from streams.sync.plaid_errors import Action

PAGES_MAX = 2_000
"""A million transactions: Plaid's longest history of the busiest Item. More would be a loop without end."""

_RESTARTED = frozenset({Action.RESTART, Action.SOON, Action.CURSOR})
"""In the middle of an update, a refused cursor is one that Plaid gave a moment ago: only its last one is promised."""
_log = logs.logger(__name__)


async def read_update(bank: Bank, token: str, cursor: str | None, *, sleep: Sleep, random: Random) -> list[SyncPage]:
    """Read all pages of the update after a cursor; none, where Plaid has not read the history yet.

    Raises: PlaidRefused, Retry, Quarantine: of the first page, or of any page of the last restart.
    """
    for restarts in range(1, backoff.RESTARTS_MAX + 2):
        pages: list[SyncPage] = []
        try:
            await _read_into(pages, bank, token, cursor)
        except (PlaidRefused, Retry) as error:
            if not _can_restart(error, in_the_middle=bool(pages)):
                raise
            if restarts > backoff.RESTARTS_MAX:
                raise _given_up(error, cursor) from error
            metrics.RESTARTS.inc()
            _log.info("update begun again", pages=len(pages), reason=str(error))
            await sleep(backoff.before_restart(restarts, random()))
        else:
            return pages
    raise AssertionError("unreachable")


async def _read_into(pages: list[SyncPage], bank: Bank, token: str, cursor: str | None) -> None:
    following = cursor
    while True:
        page = await bank.sync_page(token, following)
        if not pages and not is_ready(page):
            return
        pages.append(page)
        if not page.has_more:
            return
        if page.next_cursor in ("", following) or len(pages) >= PAGES_MAX:
            raise Retry(f"an update does not end: {len(pages)} pages, and the cursor stands still or more follow")
        following = page.next_cursor
        reach(CrashPoint.FETCH_BETWEEN_PAGES)


def _can_restart(error: PlaidRefused | Retry, *, in_the_middle: bool) -> bool:
    """A mutation is answered at once, even on a first page; what else fails there has the waits between passes."""
    if isinstance(error, Retry):
        return in_the_middle and error.wait_s is None  # without room for the next page there is none for the first
    action = plaid_errors.action(error.error_type, error.error_code, with_cursor=in_the_middle)
    return action is Action.RESTART or (in_the_middle and action in _RESTARTED)


def _given_up(error: PlaidRefused | Retry, cursor: str | None) -> PlaidRefused | Retry:
    """What to raise after the last restart. A history read from no cursor has none that could be lost."""
    if cursor is not None or isinstance(error, Retry):
        return error
    if plaid_errors.action(error.error_type, error.error_code, with_cursor=True) is not Action.CURSOR:
        return error
    return Retry(f"an update's own cursors are refused: {error.error_code}")
