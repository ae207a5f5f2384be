"""Histories of a bank and its users in which records share their time and each has a cause of its own."""

import random
from collections.abc import Iterable
from typing import Any

from projections.fold.opening_balances import COMPLETE
from runtime.kafka.reader import Received
from schemas import events
from schemas.encoding import codec
from schemas.ids import own_id
from schemas.log import gate
from schemas.log.records import Cause, Transaction
from tests.support.projections_bank import ACTS, ITEMS, BankHistory, Step
from tests.support.projections_log import START_US, Event, Log

STEPS = 40
COMPLETE_FROM = 30
"""Number of the record after which histories are complete, so that accounts are opened."""
_WITH_PAYLOAD = (events.TRANSACTION_ADDED, events.TRANSACTION_MODIFIED)


class TiedLog(Log):
    """Log in which records share their time or have an earlier one, with edits in between."""

    def append(self, item_id: str | None, block: Iterable[Event], **head: Any) -> Received:
        number = len(self.records)
        time_us = START_US + (number // 3 - (number % 5 == 0)) * 60_000_000
        usual: dict[str, Any] = {"at": time_us, "cause": cause_of(number, head.get("type"))}
        if number > COMPLETE_FROM:
            usual["history_status"] = COMPLETE
        return super().append(item_id, block, **{**usual, **head})

    def sync(self, item_id: str, *block: Event, user: int = 1, **head: Any) -> Received:
        record = super().sync(item_id, *block, user=user, **head)
        payloads = [codec.decode(Transaction, data) for kind, _, data in block if kind in _WITH_PAYLOAD]
        for payload in payloads[:: 2 + len(self.records) % 3]:
            fields = {"notes": f"n{len(self.records)}", "category": (None, "PETS")[len(self.records) % 2]}
            own = own_id(payload.transaction_id, salt=item_id.encode())
            self.edit(item_id, own, payload.transaction_id, user=user, **fields)
        return record


def cause_of(number: int, kind: str | None) -> Cause:
    """Return the cause of the record with this number in the log."""
    if kind in (gate.EDIT, gate.LINK):
        return Cause("user" if kind == gate.EDIT else "link", by=f"u{number}")
    match number % 4:
        case 0:
            return Cause("schedule", request_ids=[f"request{number}"])
        case 1:
            return Cause("manual", by="ada", request_ids=[f"request{number}"])
        case _:
            return Cause("webhook", 0, number, START_US, [f"request{number}", f"second{number}"])


def tied_history(rng: random.Random) -> BankHistory:
    """Return a history of random steps in such a log."""
    steps: list[Step] = [
        (
            rng.randrange(ITEMS),
            [(rng.choice(ACTS), rng.randrange(4), rng.randrange(6)) for _ in range(rng.randint(1, 5))],
        )
        for _ in range(STEPS)
    ]
    return BankHistory(steps, TiedLog())
