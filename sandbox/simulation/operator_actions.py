"""What people do: edits of users, and an operator who redrives what is set aside and decides about removals."""

import random
from collections.abc import Sequence

from projections.gate.quarantine import QuarantineSpan
from runtime.kafka.clients import Outgoing, partition_of
from sandbox.simulation.engine.installation import PARTITIONS, Installation, keys_of, user_number
from sandbox.simulator.bank.bank import Item
from schemas.encoding import catalogue, codec
from schemas.events import APPROVE_REMOVALS, DECISION_MADE, TRANSACTION_EDITED
from schemas.ids import free_id
from schemas.log import changesets, gate
from schemas.log.records import Cause, Decision, Edit, Head
from schemas.times import to_micros
from schemas.topics import user_key


class Operator:
    """Free records of people, straight into the log: what becomes of an append is told of fetches."""

    def __init__(self, installation: Installation, rng: random.Random) -> None:
        self._installation = installation
        self._rng = rng
        self._records = 0
        self._dealt_with: set[tuple[str, int | bytes]] = set()

    def edit(self, item: Item) -> None:
        """A user edits a transaction that no bank has told of, once or, by a repeat, twice."""
        self._installation.hazards.counts["edit"] += 1
        said = Edit("0" * 32, f"transaction-{self._records}", '{"note": "x"}')
        events = [(TRANSACTION_EDITED, catalogue.EDIT, codec.encode(said))]
        self._put(item, gate.EDIT, events, times=self._rng.choice((1, 1, 2)))

    def redrive(self, item: Item) -> None:
        """Have what is withheld of an Item tried again, also where nothing is, or in vain."""
        self._installation.hazards.counts["redrive"] += 1
        self._put(item, gate.REDRIVE, [], times=self._rng.choice((1, 1, 2)))

    def approve(self, item: Item) -> None:
        """Let the removals of an Item be that wait for a decision."""
        waits = self._installation.projection.memory.items.get(item.item_id)
        if waits is None or waits.missing_changeset_id is None:
            return
        self._installation.hazards.counts["removals_approved"] += 1
        said = Decision(waits.missing_changeset_id.hex(), APPROVE_REMOVALS, "operator")
        self._put(item, gate.DECISION, [(DECISION_MADE, catalogue.DECISION, codec.encode(said))])

    def settle(self, items: Sequence[Item]) -> None:
        """Deal with all that waits for a person, with each thing once: a redrive that fails leaves another one."""
        memory = self._installation.projection.memory
        for item in items:
            open_at = [
                quarantined.first
                for quarantined in memory.quarantined.get(item.item_id, ())
                if quarantined.redrive is None
            ]
            if self._is_new(item, open_at):
                self.redrive(item)
            waits = memory.items.get(item.item_id)
            missing_changeset_id = None if waits is None or open_at else waits.missing_changeset_id
            if missing_changeset_id is not None and self._is_new(item, [missing_changeset_id]):
                self.approve(item)

    def _is_new(self, item: Item, places: Sequence[int | bytes]) -> bool:
        found = {(item.item_id, place) for place in places} - self._dealt_with
        self._dealt_with |= found
        return bool(found)

    def _put(self, item: Item, kind: str, events: list[tuple[str, int, bytes]], *, times: int = 1) -> None:
        self._records += 1
        user = user_number(item.user)
        keys = keys_of(user)
        head = Head(
            id=free_id(user, f"record-{self._records}"),
            kind=gate.FREE,
            type=kind,
            parent=None,
            item_id=item.item_id,
            user=user,
            at=to_micros(self._installation.now()),
            cause=Cause("user"),
            key_generation=keys.generation,
            counts={name: 1 for name, _, _ in events},
        )
        value = changesets.seal(head, codec.encode_events(events), keys, nonce=self._rng.randbytes(12))
        self._installation.trace.note(f"{kind} of {item.item_id}")
        for _ in range(times):
            partition = partition_of(user_key(user), PARTITIONS)
            self._installation.broker.topic("changesets").put(partition, Outgoing(user_key(user), value))


def is_open(quarantines: Sequence[QuarantineSpan]) -> bool:
    """Whether one of them is not redriven."""
    return any(quarantined.redrive is None for quarantined in quarantines)
