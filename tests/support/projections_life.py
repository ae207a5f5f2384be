"""A bank and its user, whose edits are anywhere between the bank's updates."""

import json
from typing import Any, NamedTuple

from hypothesis import strategies as st

from runtime.kafka.reader import Received
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.ids import own_id
from tests.support.projections_bank import AMOUNTS, BankHistory, Step, histories
from tests.support.projections_log import Log, owners

VALUES: dict[str, tuple[Any, ...]] = {
    "category": ("RENT", "TRAVEL", "", None),
    "notes": ("one\nline", "é 漢 😀", "", None),
    "tags": (["a", "b"], [], None),
    "name": ("Landlord", "", None),
    "display_date": ("2026-02-28", None),
    "hidden": (True, False, None),
    "splits": tuple(
        [{"category": "RENT", "amount": amount}, {"category": "GIFT", "amount": "0"}] for amount in AMOUNTS
    ),
    "mood": ({"of a": ["later", 1, True]}, "version", None),
}
"""Values that a user sets, by field. The last field is unknown to this version."""


class ScriptedChange(NamedTuple):
    """An edit to make: of which row, field and value, by the row's first or present id, and its places in two logs."""

    row: int
    field: str
    value: int
    by_first_id: bool
    places: tuple[int, int]


changes = st.lists(
    st.builds(
        ScriptedChange,
        st.integers(0, 20),
        st.sampled_from(sorted(VALUES)),
        st.integers(0, 20),
        st.booleans(),
        st.tuples(st.integers(0, 40), st.integers(0, 40)),
    ),
    min_size=2,
    max_size=12,
)


class _Known(NamedTuple):
    """An id of a row, and the first place in the log where a user can have it."""

    item_id: str
    own_id: bytes
    transaction_id: str
    since: int


class Life:
    """A bank's history, and two logs of it with the same edits at different places.

    One field of one row is edited at most once, so the order of the edits has no effect.
    """

    def __init__(self, steps: list[Step], changes: list[ScriptedChange]) -> None:
        self.bank = BankHistory(steps)
        self.logs = (self._log(changes, 0), self._log(changes, 1))

    def _log(self, changes: list[ScriptedChange], which: int) -> list[Received]:
        bank = self.bank.log.records
        first, present = _names(bank)
        placed: list[tuple[int, int, bytes]] = []
        edits, edited = Log(), set()
        for change in changes:
            names = first if change.by_first_id and first else present
            if not names:
                continue
            known = names[change.row % len(names)]
            if (known.own_id, change.field) in edited:
                continue
            edited.add((known.own_id, change.field))
            value = VALUES[change.field][change.value % len(VALUES[change.field])]
            record = edits.edit(known.item_id, known.own_id, known.transaction_id, **{change.field: value})
            place = known.since + change.places[which] % (len(bank) + 1 - known.since)
            placed.append((place, change.places[1 - which], record.value))
        log = Log()
        for number in range(len(bank) + 1):
            for _, _, value in sorted(edit for edit in placed if edit[0] == number):
                log.put(value, 1)
            if number < len(bank):
                log.put(bank[number].value, 1)
        return log.records


def _names(bank: list[Received]) -> tuple[list[_Known], list[_Known]]:
    """Return the ids of rows: first ids, which are valid from the start, and present ids, from their first record on."""  # noqa: E501
    memory, seen = MemoryProjections(owners), set()
    first: dict[bytes, _Known] = {}
    present: list[_Known] = []
    for number, record in enumerate(bank, 1):
        memory.project([record])
        for row in sorted(memory.rows.values(), key=lambda row: row.own_id):
            name = (row.item_id, row.own_id, row.transaction_id)
            if name in seen:
                continue
            seen.add(name)
            if row.own_id == own_id(row.transaction_id, salt=row.item_id.encode()):
                first[row.own_id] = _Known(*name, since=0)
            present.append(_Known(*name, since=number))
    return list(first.values()), present


def user_fields_of(memory: MemoryProjections) -> dict[bytes, Any]:
    """Return the user fields of each row, without the offsets of their edits."""
    return {
        row.own_id: {name: entry["value"] for name, entry in json.loads(row.user_fields or "{}").items()}
        for row in memory.rows.values()
    }


lives = st.builds(Life, histories, changes)
