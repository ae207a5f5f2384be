"""Stories of one account under several Items in which histories become complete, so that accounts are opened."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from projections.fold.opening_balances import COMPLETE
from runtime.kafka.reader import Received
from schemas.log import gate
from tests.support import projections_kin
from tests.support.projections_kin import Bank, Step
from tests.support.projections_log import Log


class CompleteLog(Log):
    """A log in which two syncs of three say that the history is complete."""

    def append(self, item_id: str | None, said: Any, **head: Any) -> Received:
        if head.get("type") == gate.SYNC and len(self.records) % 3:
            head["history_status"] = COMPLETE
        return super().append(item_id, said, **head)


def told(steps: Sequence[Step]) -> Bank:
    """The bank of a story, with such a log."""
    with patch.object(projections_kin, "Log", CompleteLog):
        return Bank(list(steps))
