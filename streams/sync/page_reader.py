"""Read one Plaid update from its first page to its last. Shell.

An update is read whole or not at all: a failure in the middle leads back to the first cursor.
Source: PLAID.md 1.2, points 5 and 6; specification of /transactions/sync.
"""

from runtime import logs
from runtime.crash_points import CrashPoint, reach
from runtime.plaid.client import PlaidRefused
from runtime.plaid.models import SyncPage
from schemas.errors import Retry
from streams import metrics
from streams.ports import PlaidApi, Random, Sleep
from streams.sync import backoff, plaid_errors
from streams.sync.pages import is_ready
from streams.sync.plaid_errors import ErrorClass

PAGES_MAX = 1_000
"""Half a million transactions, ten times the busiest account's two years; with more pages an update is an endless loop.
The client's quota at Plaid is 2,500 pages a minute."""

_RESTARTED = frozenset({ErrorClass.MUTATION, ErrorClass.TRANSIENT, ErrorClass.CURSOR})
"""Classes that restart an update in its middle. A cursor refused there is one of Plaid's own, a moment old: Plaid
promises to accept only the last one of an update."""
_log = logs.logger(__name__)


class EndlessUpdate(Retry):
    """An update repeats a cursor or has too many pages: another try at once would only repeat it."""


async def read_pages(bank: PlaidApi, token: str, cursor: str | None, *, sleep: Sleep, random: Random) -> list[SyncPage]:
    """Read all pages of the update after a cursor; none, where Plaid has not read the history yet.

    Raises: PlaidRefused, Retry, Quarantine: of the first page, or of any page of the last restart.
    """
    for restarts in range(1, backoff.RESTARTS_MAX + 2):
        pages: list[SyncPage] = []
        try:
            await _read_into(pages, bank, token, cursor)
        except (PlaidRefused, Retry) as error:
            if not _restarts(error, in_the_middle=bool(pages)):
                raise
            if restarts > backoff.RESTARTS_MAX:
                if cursor is None and isinstance(error, PlaidRefused):
                    code = error.error_code
                    if plaid_errors.classify(error.error_type, code, with_cursor=True) is ErrorClass.CURSOR:
                        # A history read without a cursor has none that could be lost.
                        raise Retry(f"an update's own cursors are refused: {code}") from error
                raise
            metrics.RESTARTS.inc()
            _log.info("update restarted", pages=len(pages), reason=str(error))
            await sleep(backoff.before_restart(restarts, random()))
        else:
            return pages
    raise AssertionError("unreachable")


async def _read_into(pages: list[SyncPage], bank: PlaidApi, token: str, cursor: str | None) -> None:
    next_cursor, seen = cursor, {cursor, ""}
    while True:
        page = await bank.sync_page(token, next_cursor)
        if not pages and not is_ready(page):
            return
        pages.append(page)
        if not page.has_more:
            return
        if page.next_cursor in seen or len(pages) >= PAGES_MAX:
            raise EndlessUpdate(f"an update does not end: {len(pages)} pages, and the cursor repeats or more follow")
        next_cursor = page.next_cursor
        seen.add(next_cursor)
        reach(CrashPoint.FETCH_BETWEEN_PAGES)


def _restarts(error: PlaidRefused | Retry, *, in_the_middle: bool) -> bool:
    """Return whether an error restarts the update: on the first page only a mutation does, the others end the run."""
    if isinstance(error, EndlessUpdate):
        return False
    if isinstance(error, Retry):
        return in_the_middle and error.wait_s is None  # a rate limit for the next page is one for the first, too
    error_class = plaid_errors.classify(error.error_type, error.error_code, with_cursor=in_the_middle)
    return error_class is ErrorClass.MUTATION or (in_the_middle and error_class in _RESTARTED)
