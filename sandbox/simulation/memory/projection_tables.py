"""The projections' database in memory: what store.loader reads and store.writer writes, without Postgres.

The real gate and fold over dictionaries: the oracle of property tests, and the store of a simulation.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

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
from projections.store.rows import ledger_balance_values
from runtime.kafka.reader import Received
from runtime.postgres.errors import reason
from schemas.errors import Halt
from schemas.ids import own_id
from schemas.log import gate

OwnersOf = Callable[[Collection[int]], Owners]
"""Keys and names of users; one that nobody knows is in neither."""


class MemoryProjections:
    """Tables in memory, and a projector that folds batches into them.

    `quarantined`, `reasons` are primary, as in Postgres: a rebuild begins with those of the memory that it repeats.
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
        found = [(item, one.received.offset) for item, records in self.held.items() for one in records]
        return sorted(found, key=lambda one: one[1])

    def project(self, records: Sequence[Received]) -> None:
        """Fold records as one batch; those below their partition's position are passed over.

        Raises: Halt, where a record lies above its partition's position.
        """
        opened = self._placed(records)
        poisoned: dict[tuple[int, int], str] = {}
        while True:
            working, outcome, failed = self._fold(opened, poisoned)
            if failed is None:
                break
            where, why = failed
            assert where not in poisoned, "what is quarantined is not folded"
            poisoned[where] = why
        for record in opened:
            self.positions[record.received.partition] = record.received.offset + 1
            self.known_at[record.received.partition] = record.known_at
        for verdict, count in outcome.verdicts.items():
            self.verdicts[verdict] = self.verdicts.get(verdict, 0) + count
        self._quarantine(outcome)
        self._write(working)

    def _placed(self, records: Sequence[Received]) -> list[LogRecord]:
        positions, known_at, opened = dict(self.positions), dict(self.known_at), []
        for received in records:
            number, at = received.partition, positions.get(received.partition, 0)
            if received.offset < at:
                continue
            if received.offset > at:
                raise Halt(f"partition {number} goes on at {received.offset}, expected {at}: a gap")
            record = decode_record(received)
            positions[number] = at + 1
            known_at[number] = known_time(record, known_at.get(number, 0))
            opened.append(record._replace(known_at=known_at[number]))
        return opened

    def _fold(
        self, opened: Sequence[LogRecord], poisoned: Mapping[tuple[int, int], str]
    ) -> tuple[UnitOfWork, GateResult, tuple[tuple[int, int], str] | None]:
        """Fold a batch; where one record's fold raises, say which and why instead."""
        heads = [record.head for record in opened]
        held = {
            head.item_id: self.held.get(head.item_id, []) for head in heads if head.type == gate.REDRIVE if head.item_id
        }
        heads += [record.head for records in held.values() for record in records]
        working = UnitOfWork()
        working.items = {
            head.item_id: self._item(head.item_id) for head in heads if head.item_id and head.item_id in self.items
        }
        free = {head.id for head in heads if head.kind == gate.FREE}
        keeper = GateCheck(
            items=working.items,
            quarantined=self.quarantined,
            known_ids={folded.context.changeset_id for folded in self.folded} & free,
            owners=self._owners({head.user for head in heads}),
            poisoned=poisoned,
            withheld=held,
        )
        outcome = keeper.check(opened)
        self._look_up_kin(working, list(outcome.all_accepted()))
        self._look_up(working, outcome.all_accepted())
        for user in opening_balances.users_to_load(working, outcome.all_accepted()):
            for (account, layer), (debits, credits_) in self.balances.items():
                if layer == POSTED and self.meanings[account][:2] == (user, BANK):
                    working.book.account_by_id(account).stored = debits - credits_
        for one in outcome.accepted:
            try:
                (fold_redrive if one.redriven else fold)(working, one)
            except Halt:
                raise
            except Exception as error:
                if one.item is None:
                    raise
                received = one.log_record.received
                return working, outcome, ((received.partition, received.offset), reason(error))
        return working, outcome, None

    def _quarantine(self, outcome: GateResult) -> None:
        for ended in outcome.ended:
            quarantines = self.quarantined[ended.item_id]
            quarantines[quarantines.index(QuarantineSpan(ended.first_offset, None))] = QuarantineSpan(
                ended.first_offset, ended.redrive
            )
        for item_quarantine in outcome.quarantines:
            self.quarantined.setdefault(item_quarantine.item_id, []).append(
                QuarantineSpan(item_quarantine.first_offset, item_quarantine.redrive)
            )
            self.reasons[item_quarantine.item_id, item_quarantine.first_offset] = item_quarantine.reason
        for freed in outcome.released:
            self.held[freed.head.item_id or ""].remove(freed)
        for record in outcome.withheld:
            self.held.setdefault(record.head.item_id or "", []).append(record)

    def _item(self, item_id: str) -> ItemRow:
        item = copy.copy(self.items[item_id])
        item.by_id, item.own_ids, item.accounts, item.moved = {}, set(), {}, {}
        item.chunks = dict(item.chunks)
        item.is_complete = not item.transaction_rows
        return item

    def _look_up(self, working: UnitOfWork, admitted: Iterable[AcceptedRecord]) -> None:
        for one in admitted:
            item = one.item
            if item is None:
                continue
            for (item_id, account_id), account in self.accounts.items():
                if item_id == item.item_id and account_id not in item.accounts:
                    item.accounts[account_id] = copy.copy(account)
            if one.changeset.edits:
                self._look_up_edited(working, one)
            if item.is_complete:
                continue
            needs_all = bool(one.changeset.full_resyncs or one.changeset.decisions)
            wanted = set(one.changeset.transaction_ids())
            own_ids = {own_id(name, salt=item.item_id.encode()) for name in wanted}
            for row in self.rows.values():
                if row.item_id != item.item_id or row.own_id in item.own_ids:
                    continue
                if needs_all or row.own_id in own_ids or (row.own_id_inherited and row.transaction_id in wanted):
                    item.add(self._row(row, working))

    def _look_up_kin(self, working: UnitOfWork, records: Sequence[AcceptedRecord]) -> None:
        """All Items of users who may have kin, and all transactions of those who do or have an open review."""
        users = linked_items.users_to_load(records)
        concerned = users | {record.item.user for record in records if record.item is not None}
        working.reviews = {
            one.id: copy.copy(one) for one in self.reviews.values() if one.user in concerned and one.state == "open"
        }
        reviewed = {review.user for review in working.reviews.values()}
        for item in self.items.values():
            if item.user in users | reviewed and item.item_id not in working.items:
                working.items[item.item_id] = self._item(item.item_id)
        for (item_id, account_id), account in self.accounts.items():
            if item_id in working.items:
                working.items[item_id].accounts[account_id] = copy.copy(account)
        whole = reviewed | linked_items.related_users(working, records, users)
        for row in self.rows.values():
            if row.user in whole and row.item_id in working.items:
                working.items[row.item_id].add(self._row(row, working))
        last: dict[tuple[str, bytes], int] = {}
        for link in self.links.values():
            key = (link.item_id, link.own_id)
            last[key] = max(link.changeset, last.get(key, link.changeset))
        for link in self.links.values():
            item_id = self.rows[link.own_id].item_id
            if link.user not in whole or link.item_id not in working.items:
                continue
            is_last = link.changeset == last[link.item_id, link.own_id]
            if link.item_id != item_id and link.rule != transactions.LEFT and is_last:
                working.items[link.item_id].moved[link.transaction_id] = link.own_id
            working.items[link.item_id].own_ids.add(link.own_id)

    def _look_up_edited(self, working: UnitOfWork, one: AcceptedRecord) -> None:
        own_ids = {edit.own_id for edit in one.changeset.edits}
        names = {edit.transaction_id for edit in one.changeset.edits}
        for row in self.rows.values():
            if row.own_id in own_ids or (row.item_id == one.log_record.head.item_id and row.transaction_id in names):
                if row.item_id not in working.items:
                    working.items[row.item_id] = self._item(row.item_id)
                if row.own_id not in working.items[row.item_id].own_ids:
                    working.items[row.item_id].add(self._row(row, working))

    def _row(self, row: Row, working: UnitOfWork) -> Row:
        known = copy.copy(row)
        known.columns, known.is_new = None, False
        live = [
            one for one in self.transfers if one.own_id == row.own_id and one.number > row.transfers - len(row.postings)
        ]
        known.postings = tuple(_posting(one, working) for one in live)
        return known

    def _write(self, working: UnitOfWork) -> None:
        for row in [*working.new, *working.changed.values()]:
            assert row.is_new == (row.own_id not in self.rows)
            self.rows[row.own_id] = copy.copy(row)
        self.transfers += working.book.transfers
        self.versions += working.versions
        self.account_versions += working.account_versions
        self.links.update({(one.item_id, one.transaction_id): one for one in working.matches})
        self.reviews.update({one.id: copy.copy(one) for one in working.changed_reviews.values()})
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
        """Everything that any cut into batches must give again."""
        return {
            "rows": sorted(
                (
                    row.own_id,
                    row.item_id,
                    row.user,
                    row.transaction_id,
                    row.own_id_inherited,
                    row.version,
                    row.transfers,
                    row.first_changeset,
                    row.last_changeset,
                    row.known_at,
                    row.enriched_at,
                    row.removed_at,
                    row.missing_since_offset,
                    row.user_fields,
                    len(row.postings),
                    row.review,
                    row.payload,
                )
                for row in self.rows.values()
            ),
            "transfers": sorted(
                (
                    one.own_id,
                    one.number,
                    one.debit,
                    one.credit,
                    one.amount,
                    one.layer,
                    one.reverses,
                    one.effective,
                    one.context.offset,
                    one.context.known_at,
                )
                for one in self.transfers
            ),
            "balances": sorted((*key, *value) for key, value in self.balances.items()),
            "meanings": sorted((key, *value) for key, value in self.meanings.items()),
            "accounts": sorted(
                (
                    row.item_id,
                    row.account_id,
                    row.cached_payload,
                    row.realtime_payload,
                    row.source,
                    row.version,
                    row.known_at,
                    row.opened,
                    row.opening_transfers,
                    row.continues,
                    row.continued_by,
                )
                for row in self.accounts.values()
            ),
            "items": sorted(
                (
                    row.item_id,
                    row.user,
                    row.gate.head,
                    row.gate.unlinked,
                    row.payload,
                    row.transaction_rows,
                    row.history_status,
                    row.linked_at,
                    row.last_sync_at,
                    row.known_at,
                    tuple(row.chunks),
                    row.head_offset,
                    row.missing_rows,
                    row.missing_changeset_id,
                    row.has_linked_items,
                    tuple(sorted(row.waiting_edits.items())),
                )
                for row in self.items.values()
            ),
            "versions": sorted(self.versions),
            "account_versions": sorted(self.account_versions),
            "links": sorted(self.links.values()),
            "reviews": sorted(structs.astuple(row) for row in self.reviews.values()),
            "events": sorted(
                (
                    one.context.partition,
                    one.context.offset,
                    one.context.known_at,
                    one.block,
                    tuple(one.counts.items()),
                    tuple(one.not_effective.items()),
                    one.redriven_by,
                )
                for one in self.folded
            ),
            "quarantined": sorted(
                (item, *one) for item, quarantines in self.quarantined.items() for one in quarantines
            ),
            "withheld": list(self.withheld),
        }


def _posting(one: Transfer, working: UnitOfWork) -> Posting:
    return Posting(
        working.book.account_by_id(one.debit),
        working.book.account_by_id(one.credit),
        one.amount,
        pg_copy.numeric(one.amount),
        one.currency,
        one.layer,
        one.effective,
    )
