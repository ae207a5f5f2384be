"""A bank and its user: what the user says comes anywhere between what the bank says."""

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
"""By field, what a user says. The last field is one that this version does not know."""


class ScriptedChange(NamedTuple):
    """What a user is to say: of which row, which field, which value, by its first or its present id, and when."""

    row: int
    field: str
    value: int
    by_first_id: bool
    places: tuple[int, int]


wishes = st.lists(
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
    """A name by which a row can be spoken of, and the first place in the log where somebody can know it."""

    item_id: str
    own_id: bytes
    transaction_id: str
    since: int


class Life:
    """A bank's history, and two logs of it in which a user says the same at different times.

    One field of one row is spoken of at most once, so the order of what is said says nothing.
    """

    def __init__(self, steps: list[Step], said: list[ScriptedChange]) -> None:
        self.bank = BankHistory(steps)
        self.logs = (self._log(said, 0), self._log(said, 1))

    def _log(self, said: list[ScriptedChange], which: int) -> list[Received]:
        bank = self.bank.log.records
        first, present = _names(bank)
        placed: list[tuple[int, int, bytes]] = []
        users, spoken = Log(), set()
        for wish in said:
            names = first if wish.by_first_id and first else present
            if not names:
                continue
            known = names[wish.row % len(names)]
            if (known.own_id, wish.field) in spoken:
                continue
            spoken.add((known.own_id, wish.field))
            value = VALUES[wish.field][wish.value % len(VALUES[wish.field])]
            record = users.edit(known.item_id, known.own_id, known.transaction_id, **{wish.field: value})
            place = known.since + wish.places[which] % (len(bank) + 1 - known.since)
            placed.append((place, wish.places[1 - which], record.value))
        log = Log()
        for number in range(len(bank) + 1):
            for _, _, value in sorted(one for one in placed if one[0] == number):
                log.put(value, 1)
            if number < len(bank):
                log.put(bank[number].value, 1)
        return log.records


def _names(bank: list[Received]) -> tuple[list[_Known], list[_Known]]:
    """Names of rows: by the first id of the chain, which holds from the start, and by the present one, since it is."""
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


def folded(records: list[Received], cuts: list[int] | None = None) -> MemoryProjections:
    """The tables of a log that was cut into batches at these places; one by one unless told otherwise."""
    memory = MemoryProjections(owners)
    ends = range(len(records) + 1) if cuts is None else sorted({cut % (len(records) + 1) for cut in cuts})
    begin = 0
    for end in [*ends, len(records)]:
        if end > begin:
            memory.project(records[begin:end])
            begin = end
    return memory


def said_of(memory: MemoryProjections) -> dict[bytes, Any]:
    """What the user said of each row, without the offsets that said it."""
    return {
        row.own_id: {name: word["value"] for name, word in json.loads(row.user_fields or "{}").items()}
        for row in memory.rows.values()
    }


lives = st.builds(Life, histories, wishes)
