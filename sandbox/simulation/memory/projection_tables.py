"""Keep the projections' database in memory: the reads of store.loader and the writes of store.writer.

The real gate and fold run over dictionaries: the oracle of property tests, and the store of a simulation.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from msgspec import structs

from projections.decode.log_record import LogRecord, decode_record, known_time
from projections.fold import opening_balances
from projections.fold.fold import fold
from projections.fold.redrive import fold_redrive
from projections.gate.check import AcceptedRecord, GateCheck, GateResult, Owners
from projections.gate.quarantine import QuarantineSpan
from projections.matching import linked_items, transactions
from projections.model import pg_copy
from projections.model.book import BANK, POSTED, Posting, Transfer
from projections.model.unit_of_work import (
    AccountRow,
    AccountVersion,
    FoldedRecord,
    ItemRow,
    Review,
    Row,
    TransactionMatch,
    TransactionVersion,
    UnitOfWork,
)
from projections.store.rows import ledger_balance_values, version_values
from runtime.kafka.reader import Received
from runtime.postgres.errors import reason
from schemas.errors import Halt
from schemas.ids import own_id
from schemas.log import gate

OwnersOf = Callable[[Collection[int]], Owners]
"""Return keys and names of users; an unknown user is in neither."""


class MemoryProjections:
    """Tables in memory, and a projector that folds batches into them.

    `quarantined`, `reasons` are primary data, as in Postgres: a rebuild begins with those of the first projector.
    """

    def __init__(self, owners: OwnersOf, *, quarantined: Mapping[str, Sequence[QuarantineSpan]] | None = None) -> None:
        self._owners = owners
        self.items: dict[str, ItemRow] = {}
        self.rows: dict[bytes, Row] = {}
        self.accounts: dict[tuple[str, str], AccountRow] = {}
        self.transfers: list[Transfer] = []
        self.balances: dict[tuple[bytes, str], tuple[int, int]] = {}
        self.meanings: dict[bytes, tuple[object, ...]] = {}
        self.versions: list[TransactionVersion] = []
        self.account_versions: list[AccountVersion] = []
        self.links: dict[tuple[str, str], TransactionMatch] = {}
        self.reviews: dict[bytes, Review] = {}
        self.folded: list[FoldedRecord] = []
        self.positions: dict[int, int] = {}
        self.known_at: dict[int, int] = {}
        self.quarantined: dict[str, list[QuarantineSpan]] = {
            item: list(quarantines) for item, quarantines in (quarantined or {}).items()
        }
        self.reasons: dict[tuple[str, int], str] = {}
        self.held: dict[str, list[LogRecord]] = {}
        self.verdicts: dict[str, int] = {}

    @property
    def withheld(self) -> list[tuple[str, int]]:
        """Item and offset of each withheld record, in the order of the log."""
        records = [(item_id, record) for item_id, records in self.held.items() for record in records]
        return sorted(((item_id, record.received.offset) for item_id, record in records), key=lambda entry: entry[1])

    def project(self, records: Sequence[Received]) -> None:
        """Fold records as one batch; skip those below their partition's position.

        Raises: Halt, where a record is above its partition's position.
        """
        batch = self._decode(records)
        poisoned: dict[tuple[int, int], str] = {}
        while True:
            working, result, failure = self._fold(batch, poisoned)
            if failure is None:
                break
            position, error = failure
            assert position not in poisoned, "what is quarantined is not folded"
            poisoned[position] = error
        for record in batch:
            self.positions[record.received.partition] = record.received.offset + 1
            self.known_at[record.received.partition] = record.known_at
        for verdict, count in result.verdicts.items():
            self.verdicts[verdict] = self.verdicts.get(verdict, 0) + count
        self._quarantine(result)
        self._write(working)

    def _decode(self, records: Sequence[Received]) -> list[LogRecord]:
        positions, known_at, decoded = dict(self.positions), dict(self.known_at), []
        for received in records:
            partition, position = received.partition, positions.get(received.partition, 0)
            if received.offset < position:
                continue
            if received.offset > position:
                raise Halt(f"partition {partition} goes on at {received.offset}, expected {position}: a gap")
            record = decode_record(received)
            positions[partition] = position + 1
            known_at[partition] = known_time(record, known_at.get(partition, 0))
            decoded.append(record._replace(known_at=known_at[partition]))
        return decoded

    def _fold(
        self, batch: Sequence[LogRecord], poisoned: Mapping[tuple[int, int], str]
    ) -> tuple[UnitOfWork, GateResult, tuple[tuple[int, int], str] | None]:
        """Fold a batch; where the fold of a record raises, return its position and the error too."""
        heads = [record.head for record in batch]
        withheld = {
            head.item_id: self.held.get(head.item_id, []) for head in heads if head.type == gate.REDRIVE if head.item_id
        }
        heads += [record.head for records in withheld.values() for record in records]
        working = UnitOfWork()
        working.items = {
            head.item_id: self._item(head.item_id) for head in heads if head.item_id and head.item_id in self.items
        }
        free = {head.id for head in heads if head.kind == gate.FREE}
        gate_check = GateCheck(
            items=working.items,
            quarantined=self.quarantined,
            known_ids={folded.context.changeset_id for folded in self.folded} & free,
            owners=self._owners({head.user for head in heads}),
            poisoned=poisoned,
            withheld=withheld,
        )
        result = gate_check.check(batch)
        self._load_linked_items(working, list(result.all_accepted()))
        self._load_rows(working, result.all_accepted())
        for user in opening_balances.users_to_load(working, result.all_accepted()):
            for (account, layer), (debits, credits_) in self.balances.items():
                if layer == POSTED and self.meanings[account][:2] == (user, BANK):
                    working.book.account_by_id(account).stored = debits - credits_
        for record in result.accepted:
            try:
                (fold_redrive if record.redriven else fold)(working, record)
            except Halt:
                raise
            except Exception as error:
                if record.item is None:
                    raise
                received = record.log_record.received
                return working, result, ((received.partition, received.offset), reason(error))
        return working, result, None

    def _quarantine(self, result: GateResult) -> None:
        for ended in result.ended:
            spans = self.quarantined[ended.item_id]
            spans[spans.index(QuarantineSpan(ended.first_offset, None))] = QuarantineSpan(
                ended.first_offset, ended.redrive
            )
        for begun in result.quarantines:
            span = QuarantineSpan(begun.first_offset, begun.redrive)
            self.quarantined.setdefault(begun.item_id, []).append(span)
            self.reasons[begun.item_id, begun.first_offset] = begun.reason
        for record in result.released:
            self.held[record.head.item_id or ""].remove(record)
        for record in result.withheld:
            self.held.setdefault(record.head.item_id or "", []).append(record)

    def _item(self, item_id: str) -> ItemRow:
        item = copy.copy(self.items[item_id])
        item.by_id, item.own_ids, item.accounts, item.moved = {}, set(), {}, {}
        item.chunks = dict(item.chunks)
        item.is_complete = not item.transaction_rows
        return item

    def _load_rows(self, working: UnitOfWork, records: Iterable[AcceptedRecord]) -> None:
        """Load the accounts and the changed transactions of each record's Item."""
        for record in records:
            item = record.item
            if item is None:
                continue
            for (item_id, account_id), account in self.accounts.items():
                if item_id == item.item_id and account_id not in item.accounts:
                    item.accounts[account_id] = copy.copy(account)
            if record.changeset.edits:
                self._load_edited_rows(working, record)
            if item.is_complete:
                continue
            needs_all = bool(record.changeset.full_resyncs or record.changeset.decisions)
            changed_ids = set(record.changeset.transaction_ids())
            own_ids = {own_id(name, salt=item.item_id.encode()) for name in changed_ids}
            for row in self.rows.values():
                if row.item_id != item.item_id or row.own_id in item.own_ids:
                    continue
                if needs_all or row.own_id in own_ids or (row.own_id_inherited and row.transaction_id in changed_ids):
                    item.add(self._row(row, working))

    def _load_linked_items(self, working: UnitOfWork, records: Sequence[AcceptedRecord]) -> None:
        """Load all Items of users who may have linked Items, and all rows of those who do or have an open review."""
        users = linked_items.users_to_load(records)
        concerned = users | {record.item.user for record in records if record.item is not None}
        working.reviews = {
            review.id: copy.copy(review)
            for review in self.reviews.values()
            if review.user in concerned and review.state == "open"
        }
        reviewed = {review.user for review in working.reviews.values()}
        for item in self.items.values():
            if item.user in users | reviewed and item.item_id not in working.items:
                working.items[item.item_id] = self._item(item.item_id)
        for (item_id, account_id), account in self.accounts.items():
            if item_id in working.items:
                working.items[item_id].accounts[account_id] = copy.copy(account)
        complete = reviewed | linked_items.related_users(working, records, users)
        for row in self.rows.values():
            if row.user in complete and row.item_id in working.items:
                working.items[row.item_id].add(self._row(row, working))
        last: dict[tuple[str, bytes], int] = {}
        for link in self.links.values():
            key = (link.item_id, link.own_id)
            last[key] = max(link.changeset, last.get(key, link.changeset))
        for link in self.links.values():
            if link.user not in complete or link.item_id not in working.items:
                continue
            is_last = link.changeset == last[link.item_id, link.own_id]
            is_moved = link.item_id != self.rows[link.own_id].item_id and link.rule != transactions.LEFT
            if is_moved and is_last:
                working.items[link.item_id].moved[link.transaction_id] = link.own_id
            working.items[link.item_id].own_ids.add(link.own_id)

    def _load_edited_rows(self, working: UnitOfWork, record: AcceptedRecord) -> None:
        item_id = record.log_record.head.item_id
        own_ids = {edit.own_id for edit in record.changeset.edits}
        names = {edit.transaction_id for edit in record.changeset.edits}
        for row in self.rows.values():
            if row.own_id in own_ids or (row.item_id == item_id and row.transaction_id in names):
                if row.item_id not in working.items:
                    working.items[row.item_id] = self._item(row.item_id)
                if row.own_id not in working.items[row.item_id].own_ids:
                    working.items[row.item_id].add(self._row(row, working))

    def _row(self, row: Row, working: UnitOfWork) -> Row:
        loaded = copy.copy(row)
        loaded.columns, loaded.is_new = None, False
        first = row.transfers - len(row.postings)
        live = [transfer for transfer in self.transfers if transfer.own_id == row.own_id and transfer.number > first]
        loaded.postings = tuple(_posting(transfer, working) for transfer in live)
        return loaded

    def _write(self, working: UnitOfWork) -> None:
        for row in [*working.new, *working.changed.values()]:
            assert row.is_new == (row.own_id not in self.rows)
            self.rows[row.own_id] = copy.copy(row)
        self.transfers += working.book.transfers
        self.versions += working.versions
        self.account_versions += working.account_versions
        self.links.update({(match.item_id, match.transaction_id): match for match in working.matches})
        self.reviews.update({review.id: copy.copy(review) for review in working.changed_reviews.values()})
        for account, layer, debits, credits_ in ledger_balance_values(working):
            before = self.balances.get((account, layer), (0, 0))
            self.balances[account, layer] = (before[0] + int(debits), before[1] + int(credits_))
        for ledger_account in working.book.accounts.values():
            if ledger_account.spec is not None:
                assert self.meanings.setdefault(ledger_account.id, ledger_account.spec) == ledger_account.spec
        self.accounts.update({key: copy.copy(row) for key, row in working.changed_accounts.items()})
        for item_id, item in working.items.items():
            if item_id in working.changed_items or item.chunks or item_id in self.items:
                self.items[item_id] = item
        self.folded += working.folded

    def full(self) -> dict[str, list[tuple[object, ...]]]:
        """Return all values that any cut into batches must reproduce."""
        quarantines = [(item_id, *span) for item_id, spans in self.quarantined.items() for span in spans]
        return {
            "rows": sorted((*_values("rows", row), len(row.postings)) for row in self.rows.values()),
            "transfers": sorted(_values("transfers", transfer) for transfer in self.transfers),
            "balances": sorted((*key, *value) for key, value in self.balances.items()),
            "meanings": sorted((key, *value) for key, value in self.meanings.items()),
            "accounts": sorted(_values("accounts", row) for row in self.accounts.values()),
            "items": sorted(
                (*_values("items", row), tuple(row.chunks), tuple(sorted(row.waiting_edits.items())))
                for row in self.items.values()
            ),
            "versions": sorted(map(version_values, self.versions)),
            "account_versions": sorted(self.account_versions),
            "links": sorted(self.links.values()),
            "reviews": sorted(structs.astuple(row) for row in self.reviews.values()),
            "events": sorted(
                (*_values("events", record), tuple(record.counts.items()), tuple(record.not_effective.items()))
                for record in self.folded
            ),
            "quarantined": sorted(quarantines),
            "withheld": list(self.withheld),
        }


_COMPARED = {
    "rows": "own_id item_id user transaction_id own_id_inherited version transfers first_changeset last_changeset "
    "known_at enriched_at removed_at missing_since_offset user_fields review payload",
    "transfers": "own_id number debit credit amount layer reverses effective context.offset context.known_at",
    "accounts": "item_id account_id cached_payload realtime_payload source version known_at opened opening_transfers "
    "continues continued_by",
    "items": "item_id user gate.head gate.unlinked payload transaction_rows history_status linked_at last_sync_at "
    "known_at head_offset missing_rows missing_changeset_id has_linked_items",
    "events": "context.partition context.offset context.known_at block redriven_by",
}
"""Fields that a replay of the log must reproduce, by table."""

_GETTERS = {name: attrgetter(*fields.split()) for name, fields in _COMPARED.items()}


def _values(table: str, row: object) -> tuple[Any, ...]:
    values: tuple[Any, ...] = _GETTERS[table](row)
    return values


def _posting(transfer: Transfer, working: UnitOfWork) -> Posting:
    return Posting(
        working.book.account_by_id(transfer.debit),
        working.book.account_by_id(transfer.credit),
        transfer.amount,
        pg_copy.numeric(transfer.amount),
        transfer.currency,
        transfer.layer,
        transfer.effective,
    )
