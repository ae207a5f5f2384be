"""Create the webhooks that Plaid sends, and sign their attempts."""

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence

from sandbox.simulator.api.signing import Keyring
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.transactions import Change
from sandbox.simulator.clock import Clock
from sandbox.simulator.webhooks.delivery import Delivery, DeliveryQueue, Webhook


class Notifier:
    """Create webhooks of Items and submit them to the delivery queue.

    `rotate_key_every` replaces the signing key after so many webhooks; `resign_retries` signs each attempt anew.
    `on_wake` is called after each webhook.
    """

    def __init__(
        self,
        clock: Clock,
        keyring: Keyring,
        deliveries: DeliveryQueue,
        *,
        rotate_key_every: int | None,
        resign_retries: bool,
        on_wake: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._keyring = keyring
        self._deliveries = deliveries
        self._rotate_key_every = rotate_key_every
        self._resign_retries = resign_retries
        self._on_wake = on_wake
        self._webhooks = 0

    def notify(
        self, item: Item, webhook_type: str, code: str, extra: Mapping[str, object], *, late_s: float = 0.0
    ) -> bool:
        """Send a webhook to the Item's address, `late_s` late; return False where it has none.

        `/item/get` reports it as sent now, even if it is lost.
        """
        if item.webhook_url is None:
            return False
        item.last_webhook_at, item.last_webhook_code = self._clock.now(), code
        body = {"webhook_type": webhook_type, "webhook_code": code, "item_id": item.item_id}
        self.send(item.webhook_url, {**body, **extra, "environment": "sandbox"}, late_s=late_s)
        return True

    def send(self, url: str, body: Mapping[str, object], *, late_s: float = 0.0) -> None:
        """Send any signed body; many of Plaid's webhooks have no Item."""
        now = self._clock.now()
        self._webhooks += 1
        if self._rotate_key_every and self._webhooks % self._rotate_key_every == 0:
            self._keyring.rotate(now, expire_old=False)
        # Plaid indents by two spaces, and the signature covers these very bytes.
        raw = json.dumps(body, indent=2, ensure_ascii=False).encode()
        item_id, code = (str(body.get(name, "")) for name in ("item_id", "webhook_code"))
        self._deliveries.submit(Webhook(self._webhooks, item_id, url, code, raw, now), late_s=late_s)
        self._on_wake()

    def signature(self, delivery: Delivery, sent_at: dt.datetime) -> str:
        """Sign an attempt; return the value of the header `Plaid-Verification`.

        Without `resign_retries` all attempts have the time at which the webhook was created.
        """
        if self._resign_retries:
            return self._keyring.sign(delivery.webhook.body, sent_at)
        if delivery.signature is None:
            delivery.signature = self._keyring.sign(delivery.webhook.body, delivery.webhook.made_at)
        return delivery.signature

    def notify_updates(self, item: Item) -> bool:
        """Send SYNC_UPDATES_AVAILABLE with the current phase, whether or not there are new changes."""
        phase = item.reread or item.phase
        flags = {
            "initial_update_complete": phase != "NOT_READY",
            "historical_update_complete": phase == "HISTORICAL_UPDATE_COMPLETE",
        }
        return self.notify(item, "TRANSACTIONS", "SYNC_UPDATES_AVAILABLE", flags)

    def notify_legacy_update(self, item: Item, changes: Sequence[Change]) -> None:
        """Send the webhooks of an update for clients of `/transactions/get`."""
        added = sum(change.kind == "added" for change in changes)
        removed = [c.transaction.transaction_id for c in changes if c.kind == "removed"]
        if added:
            self.notify(item, "TRANSACTIONS", "DEFAULT_UPDATE", {"new_transactions": added, "error": None})
        if removed:
            extra = {"removed_transactions": removed, "error": None}
            self.notify(item, "TRANSACTIONS", "TRANSACTIONS_REMOVED", extra)

    def notify_legacy_history(self, item: Item, code: str, transactions: int) -> None:
        """Send INITIAL_UPDATE or HISTORICAL_UPDATE."""
        self.notify(item, "TRANSACTIONS", code, {"new_transactions": transactions, "error": None})
