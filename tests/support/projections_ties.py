"""Histories of a bank and its users in which records share their time, each with a cause of its own."""

import random
from typing import Any

import pytest

from projections.fold.opening_balances import COMPLETE
from runtime.kafka.reader import Received
from schemas import events
from schemas.encoding import codec
from schemas.ids import own_id
from schemas.log import gate
from schemas.log.records import Cause, Transaction
from tests.support import projections_bank
from tests.support.projections_bank import ACTS, ITEMS, BankHistory, Step
from tests.support.projections_log import START_US, Log

STEPS = 40
COMPLETE_FROM = 30
"""Number of the record from which on histories are complete, so accounts are opened."""
_SAY_WORDS = (events.TRANSACTION_ADDED, events.TRANSACTION_MODIFIED)


class TiedLog(Log):
    """A log in which records share their time, or come with an earlier one, and users speak in between."""

    def append(self, item_id: str | None, said: Any, **head: Any) -> Received:
        number = len(self.records)
        at = START_US + (number // 3 - (number % 5 == 0)) * 60_000_000
        usual: dict[str, Any] = {"at": at, "cause": cause_of(number, head.get("type"))}
        if number > COMPLETE_FROM:
            usual["history_status"] = COMPLETE
        return super().append(item_id, said, **{**usual, **head})

    def sync(self, item_id: str, *said: Any, user: int = 1, **head: Any) -> Received:
        record = super().sync(item_id, *said, user=user, **head)
        named = [codec.decode(Transaction, data) for kind, _, data in said if kind in _SAY_WORDS]
        for payload in named[:: 2 + len(self.records) % 3]:
            fields = {"notes": f"n{len(self.records)}", "category": (None, "PETS")[len(self.records) % 2]}
            own = own_id(payload.transaction_id, salt=item_id.encode())
            self.edit(item_id, own, payload.transaction_id, user=user, **fields)
        return record


def cause_of(number: int, kind: str | None) -> Cause:
    """The cause of the record with this number in the log."""
    if kind in (gate.EDIT, gate.LINK):
        return Cause("user" if kind == gate.EDIT else "link", by=f"u{number}")
    match number % 4:
        case 0:
            return Cause("schedule", request_ids=[f"request{number}"])
        case 1:
            return Cause("manual", by="ada", request_ids=[f"request{number}"])
        case _:
            return Cause("webhook", 0, number, START_US, [f"request{number}", f"second{number}"])


def tied_history(monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> BankHistory:
    """A history of random steps, told in such a log."""
    monkeypatch.setattr(projections_bank, "Log", TiedLog)
    steps: list[Step] = [
        (
            rng.randrange(ITEMS),
            [(rng.choice(ACTS), rng.randrange(4), rng.randrange(6)) for _ in range(rng.randint(1, 5))],
        )
        for _ in range(STEPS)
    ]
    return BankHistory(steps)
