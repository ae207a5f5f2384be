"""One Item's log in memory and its tables, for tests of the fold's rules."""

from collections import Counter
from typing import Any

from projections.events import public_events
from projections.events.public_events import TransactionEvent
from projections.model.unit_of_work import Row
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.ids import own_id
from tests.support.projections_log import Event, Log, owners

OWN = own_id("T", salt=b"A")
"""Own id of the transaction with Plaid's id T."""


class Story:
    """Log and its tables, folded in batches of one record."""

    def __init__(self) -> None:
        self.log = Log()
        self.memory = MemoryProjections(owners)
        self.memory.project([self.log.link("A")])

    def sync(self, *block: Event) -> list[str]:
        """Append a sync run's changeset, fold it, and return the types of its net events."""
        return self.project(self.log.sync("A", *block))

    def edit(self, own: bytes = OWN, name: str = "T", **fields: Any) -> list[str]:
        """Append an edit, fold it, and return the types of its net events."""
        return self.project(self.log.edit("A", own, name, **fields))

    def project(self, *records: object) -> list[str]:
        """Fold records of the log, and return the types of their net events."""
        before = len(self.memory.folded)
        self.memory.project(records)  # type: ignore[arg-type]
        return [event.type for folded in self.memory.folded[before:] for event in folded.net_events]

    @property
    def row(self) -> Row:
        """The only row."""
        [row] = self.memory.rows.values()
        return row

    def last_event(self) -> TransactionEvent:
        """Return the last net event."""
        return public_events.read_transaction(self.memory.folded[-1].net_events[-1].data)

    def balances(self) -> dict[str, int]:
        """Return the balance of each kind of ledger account and layer, in units of the currency."""
        balances: Counter[str] = Counter()
        for (kind, _, layer), amount in self._by_meaning().items():
            balances[f"{kind} {layer}"] += amount
        return balances

    def by_category(self) -> dict[str, int]:
        """Return the sums of all layers by category, without zeros."""
        sums: Counter[str] = Counter()
        for (kind, reference, _), amount in self._by_meaning().items():
            if kind == "category":
                sums[reference] += amount
        return {name: amount for name, amount in sums.items() if amount}

    def _by_meaning(self) -> dict[tuple[str, str, str], int]:
        amounts: dict[tuple[str, str, str], int] = {}
        for (ledger_account, layer), (debits, credits_) in self.memory.balances.items():
            kind, reference = map(str, self.memory.meanings[ledger_account][1:3])
            amounts[kind, reference, layer] = (debits - credits_) // 10**8
        return amounts
