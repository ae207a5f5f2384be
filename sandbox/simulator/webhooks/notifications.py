"""What Plaid tells by webhook, and in which words."""

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence

from sandbox.simulator.api.signing import Keyring
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.transactions import Change
from sandbox.simulator.clock import Clock
from sandbox.simulator.webhooks.delivery import Delivery, DeliveryQueue, Webhook


class Notifier:
    """Makes webhooks of Items and hands them to the courier.

    `rotate_key_every` changes the signing key after so many webhooks; `resign_retries` signs each attempt anew.
    `on_wake` is called for each one made.
    """

    def __init__(
        self,
        clock: Clock,
        keyring: Keyring,
        courier: DeliveryQueue,
        *,
        rotate_key_every: int | None,
        resign_retries: bool,
        on_wake: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._keyring = keyring
        self._courier = courier
        self._rotate_key_every = rotate_key_every
        self._resign_retries = resign_retries
        self._on_wake = on_wake
        self._made = 0

    def notify(
        self, item: Item, webhook_type: str, code: str, extra: Mapping[str, object], *, late_s: float = 0.0
    ) -> bool:
        """Send a webhook to the Item's address, to arrive so late; False where it has none.

        `/item/get` says that it was sent now, whatever becomes of it on its way.
        """
        if item.webhook_url is None:
            return False
        item.last_webhook_at, item.last_webhook_code = self._clock.now(), code
        body = {"webhook_type": webhook_type, "webhook_code": code, "item_id": item.item_id}
        self.send(item.webhook_url, {**body, **extra, "environment": "sandbox"}, late_s=late_s)
        return True

    def send(self, url: str, body: Mapping[str, object], *, late_s: float = 0.0) -> None:
        """Send any body, signed like every other; many of Plaid's webhooks are of no Item."""
        now = self._clock.now()
        self._made += 1
        if self._rotate_key_every and self._made % self._rotate_key_every == 0:
            self._keyring.rotate(now, expire_old=False)
        # Plaid sends two spaces of indentation, and the signature is over these very bytes.
        raw = json.dumps(body, indent=2, ensure_ascii=False).encode()
        item_id, code = (str(body.get(name, "")) for name in ("item_id", "webhook_code"))
        self._courier.submit(Webhook(self._made, item_id, url, code, raw, now), late_s=late_s)
        self._on_wake()

    def signature(self, delivery: Delivery, at: dt.datetime) -> str:
        """Sign an attempt that goes out at a time: the value of the header `Plaid-Verification`.

        Where retries are not signed anew, all attempts carry the time at which the webhook was made, late ones too.
        """
        if self._resign_retries:
            return self._keyring.sign(delivery.webhook.body, at)
        if delivery.signature is None:
            delivery.signature = self._keyring.sign(delivery.webhook.body, delivery.webhook.made_at)
        return delivery.signature

    def notify_updates(self, item: Item) -> bool:
        """Send SYNC_UPDATES_AVAILABLE as it stands now, whether or not there is anything new."""
        phase = item.reread or item.phase
        flags = {
            "initial_update_complete": phase != "NOT_READY",
            "historical_update_complete": phase == "HISTORICAL_UPDATE_COMPLETE",
        }
        return self.notify(item, "TRANSACTIONS", "SYNC_UPDATES_AVAILABLE", flags)

    def notify_legacy_update(self, item: Item, changes: Sequence[Change]) -> None:
        """Send what clients of `/transactions/get` are told about an update."""
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
