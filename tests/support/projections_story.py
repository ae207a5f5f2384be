"""One Item's log in memory and what becomes of it, for tests of the fold's rules."""

from typing import Any

from projections.events import public_events
from projections.events.public_events import TransactionEvent
from projections.model.unit_of_work import Row
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.ids import own_id
from tests.support.projections_log import Event, Log, owners

OWN = own_id("T", salt=b"A")
"""The own id of the transaction with Plaid's id T."""


class Story:
    """A log and what became of it, one batch a record."""

    def __init__(self) -> None:
        self.log = Log()
        self.memory = MemoryProjections(owners)
        self.memory.project([self.log.link("A")])

    def say(self, *said: Event) -> list[str]:
        """Append a sync, fold it, and give the types of its net events."""
        return self.project(self.log.sync("A", *said))

    def edit(self, own: bytes = OWN, name: str = "T", **fields: Any) -> list[str]:
        """Append what a user says, fold it, and give the types of its net events."""
        return self.project(self.log.edit("A", own, name, **fields))

    def project(self, *records: object) -> list[str]:
        """Fold records of the log, and give the types of their net events."""
        before = len(self.memory.folded)
        self.memory.project(records)  # type: ignore[arg-type]
        return [event.type for one in self.memory.folded[before:] for event in one.net_events]

    @property
    def row(self) -> Row:
        """The only row."""
        [row] = self.memory.rows.values()
        return row

    def said(self) -> TransactionEvent:
        """The last net event."""
        return public_events.read_transaction(self.memory.folded[-1].net_events[-1].data)

    def balances(self) -> dict[str, int]:
        """Balance of each kind of ledger account and layer, in units of the currency."""
        found: dict[str, int] = {}
        for (kind, _, layer), amount in self._by_meaning().items():
            found[f"{kind} {layer}"] = found.get(f"{kind} {layer}", 0) + amount
        return found

    def spent(self) -> dict[str, int]:
        """What went into each category in all layers, where it is not zero."""
        found: dict[str, int] = {}
        for (kind, reference, _), amount in self._by_meaning().items():
            if kind == "category":
                found[reference] = found.get(reference, 0) + amount
        return {name: amount for name, amount in found.items() if amount}

    def _by_meaning(self) -> dict[tuple[str, str, str], int]:
        found: dict[tuple[str, str, str], int] = {}
        for (ledger_account, layer), (debits, credits_) in self.memory.balances.items():
            kind, reference = map(str, self.memory.meanings[ledger_account][1:3])
            found[kind, reference, layer] = (debits - credits_) // 10**8
        return found
