"""Remove an Item at Plaid, and check that a refusal really means that it is gone. Shell.

Wrong API keys, or those of another environment, are answered as if every Item were gone. So no Item counts as gone
while too many others are called gone with it.
"""

from runtime import logs
from runtime.plaid.client import PlaidRefused
from runtime.scheduler.types import Claimed
from schemas.errors import Retry
from schemas.events import GONE
from streams.ports import Bank, Store
from streams.sync import backoff
from streams.sync.changeset import Tip
from streams.sync.plaid_errors import REMOVED_CODES, TOKEN_UNKNOWN

GONE_MIN, GONE_SHARE = 10, 0.2
"""This many Items, and this share of all, gone within an hour are no coincidence: sandbox keys on a production database
are answered so for every Item."""

_log = logs.logger(__name__)


class TooManyGone(Retry):
    """Plaid calls an Item gone, and too many others with it; hours later the two cases differ."""


async def check_gone_share(store: Store) -> None:
    """Check that few Items are called gone, so that wrong keys end no living Items.

    The process goes on: ten Items that really are gone would otherwise stop the syncs of all others for the hour,
    restart after restart.
    Raises: TooManyGone.
    """
    gone, items = await store.count_gone()
    if gone + 1 >= max(GONE_MIN, items * GONE_SHARE):
        raise TooManyGone(f"Plaid calls {gone + 1} of {items} Items gone within an hour: are its keys the right ones?")


async def remove_item(bank: Bank, store: Store, claimed: Claimed, token: str, tip: Tip) -> str | None:
    """Remove an Item at Plaid. Return None, or the code of a refusal that counts as removed.

    A code that names the Item counts at once. An unknown token counts

    - at once, for an Item that the log holds and that was not gone: its token was good, and a sync run that died
      before its append has removed it;
    - for any other after ATTEMPTS_MAX attempts, which are hours apart: the token may be lost while its Item lives,
      and no further attempt with it could end that;

    and both only while Plaid does not answer so for many Items.
    Raises: PlaidRefused, Retry, TooManyGone.
    """
    try:
        await bank.remove(token)
    except PlaidRefused as refusal:
        code, attempts = refusal.error_code, claimed.attempts + 1
        if code in REMOVED_CODES:
            return code
        was_good = tip.head is not None and tip.state != GONE
        if code != TOKEN_UNKNOWN or not (was_good or attempts >= backoff.ATTEMPTS_MAX):
            raise
        await check_gone_share(store)
        _log.warning("taken for removed", item_id=claimed.item_id, code=code, attempts=attempts)
        return code
    return None
