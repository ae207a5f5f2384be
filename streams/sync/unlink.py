"""The end of an Item at Plaid: when a refusal says that it is gone, and when that is believed. Shell.

Wrong keys, or those of another environment, are answered as if every Item were gone. So no single answer ends what
an Item costs while others are called gone with it.
"""

from runtime import logs
from runtime.plaid.client import PlaidRefused
from runtime.scheduler.types import Claimed
from schemas.errors import Retry
from schemas.events import GONE
from streams.ports import Bank, Store
from streams.sync import backoff, plaid_errors
from streams.sync.changeset import Tip

GONE_MIN, GONE_SHARE = 10, 0.2
"""So many Items, and this share of all, gone within an hour are no coincidence: sandbox keys on a production
database answer so for every Item."""

_log = logs.logger(__name__)


class TooManyGone(Retry):
    """Plaid calls an Item gone, and too many others with it: in hours it can be told which of them are."""


async def check_share_gone(store: Store) -> None:
    """While too many Items are called gone, none is: wrong keys must not end Items that live.

    The process goes on: ten Items that really are gone would otherwise stop the syncs of all others for the
    hour, restart after restart.
    Raises: TooManyGone.
    """
    gone, items = await store.count_gone()
    if gone + 1 >= max(GONE_MIN, items * GONE_SHARE):
        raise TooManyGone(f"Plaid calls {gone + 1} of {items} Items gone within an hour: are its keys the right ones?")


async def remove(bank: Bank, store: Store, claimed: Claimed, token: str, tip: Tip) -> str | None:
    """End an Item at Plaid. Gives the code of a refusal that was taken for the end; None where Plaid removed it.

    Raises: PlaidRefused, Retry, TooManyGone.
    """
    try:
        await bank.remove(token)
    except PlaidRefused as refusal:
        if not await _is_removed(refusal, store, claimed, tip):
            raise
        return refusal.error_code
    return None


async def _is_removed(refusal: PlaidRefused, store: Store, claimed: Claimed, tip: Tip) -> bool:
    """Whether a refused removal finds the Item removed already.

    A code that names the Item is believed. That Plaid knows only that the token is none is believed

    - at once, of an Item that the log holds and that was not gone: its token was good, and a pass that died before
      its append has removed it;
    - of any other after ATTEMPTS_MAX attempts, which are hours apart: its token may have been thrown away while its
      Item lives, and nobody can end that with this token however long it is tried;

    and both only while Plaid does not answer so for many.
    Raises: TooManyGone.
    """
    if plaid_errors.is_removed(refusal.error_code):
        return True
    if not plaid_errors.is_token_unknown(refusal.error_code):
        return False
    was_good = tip.head is not None and tip.state != GONE
    if not was_good and claimed.attempts + 1 < backoff.ATTEMPTS_MAX:
        return False
    await check_share_gone(store)
    _log.warning("taken for removed", item_id=claimed.item_id, code=refusal.error_code, attempts=claimed.attempts + 1)
    return True
