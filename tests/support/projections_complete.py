"""Stories of one account under several Items in which histories become complete, so that accounts are opened."""

from collections.abc import Iterable, Sequence
from typing import Any

from projections.fold.opening_balances import COMPLETE
from runtime.kafka.reader import Received
from schemas.log import gate
from tests.support.projections_kin import Bank, Step
from tests.support.projections_log import Event, Log


class CompleteLog(Log):
    """Log in which two of three sync runs report that the history is complete."""

    def append(self, item_id: str | None, block: Iterable[Event], **head: Any) -> Received:
        if head.get("type") == gate.SYNC and len(self.records) % 3:
            head["history_status"] = COMPLETE
        return super().append(item_id, block, **head)


def complete_story(steps: Sequence[Step]) -> Bank:
    """Return the bank of a story with such a log."""
    return Bank(steps, CompleteLog())
