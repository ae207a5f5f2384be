"""Append the commands of people: edits of users, and an operator's redrives and decisions."""

import random
from collections.abc import Collection, Sequence

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
    """Append commands straight to the log, without faults: appends in doubt are those of fetches."""

    def __init__(self, installation: Installation, rng: random.Random) -> None:
        self._installation = installation
        self._rng = rng
        self._commands = 0
        self._settled: set[tuple[str, int | bytes]] = set()

    def edit(self, item: Item) -> None:
        """Edit an unknown transaction, once or repeated."""
        edit = Edit("0" * 32, f"transaction-{self._commands}", '{"note": "x"}')
        events = [(TRANSACTION_EDITED, catalogue.EDIT, codec.encode(edit))]
        self._append(item, gate.EDIT, "edit", events, times=self._rng.choice((1, 1, 2)))

    def redrive(self, item: Item) -> None:
        """Redrive an Item, even where nothing is withheld."""
        self._append(item, gate.REDRIVE, "redrive", [], times=self._rng.choice((1, 1, 2)))

    def approve(self, item: Item) -> None:
        """Approve the removals of an Item that wait for a decision."""
        row = self._installation.projection.memory.items.get(item.item_id)
        if row is not None and row.missing_changeset_id is not None:
            decision = Decision(row.missing_changeset_id.hex(), APPROVE_REMOVALS, "operator")
            events = [(DECISION_MADE, catalogue.DECISION, codec.encode(decision))]
            self._append(item, gate.DECISION, "removals_approved", events)

    def settle(self, items: Sequence[Item]) -> None:
        """Redrive each new quarantine and approve each new removal once; a failed redrive leaves a new quarantine."""
        memory = self._installation.projection.memory
        for item in items:
            quarantines = memory.quarantined.get(item.item_id, ())
            first_offsets = [span.first for span in quarantines if span.redrive is None]
            if self._is_new(item, first_offsets):
                self.redrive(item)
            row = memory.items.get(item.item_id)
            missing = None if row is None or first_offsets else row.missing_changeset_id
            if missing is not None and self._is_new(item, [missing]):
                self.approve(item)

    def _is_new(self, item: Item, keys: Collection[int | bytes]) -> bool:
        new = {(item.item_id, key) for key in keys} - self._settled
        self._settled |= new
        return bool(new)

    def _append(
        self, item: Item, kind: str, fault: str, events: list[tuple[str, int, bytes]], *, times: int = 1
    ) -> None:
        self._installation.faults.counts[fault] += 1
        self._commands += 1
        user = user_number(item.user)
        keys = keys_of(user)
        head = Head(
            id=free_id(user, f"record-{self._commands}"),
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
