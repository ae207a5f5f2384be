"""A bank whose accounts tie out, until it is told not to; and what the projections' memory knows of an account."""

import datetime
import random
from decimal import Decimal
from typing import Any

import msgspec

from projections.model.book import BANK, POSTED
from projections.model.unit_of_work import AccountRow
from projections.reconcile.diagnosis import diagnose
from projections.reconcile.tie_out import Details, DuplicateAccount, Facts, Layers, Line, Report, Verdict, compare
from runtime.kafka.reader import Received
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.encoding import codec
from schemas.ids import ledger_account_id, opening_id
from schemas.log.records import Account, Item, Transaction
from tests.support.projections_log import Event, Log, account, added, balance, modified, removed, transaction

COMPLETE = "HISTORICAL_UPDATE_COMPLETE"
FIRST_DAY = datetime.date(2026, 3, 1)
CURRENCIES = ("USD", "USD", "EUR", "KWD")
KINDS = (("depository", "checking"), ("depository", "savings"), ("credit", "credit card"), ("loan", "student"))


class Story:
    """One account of one Item, drawn by a seed: `step` is an update that ties out. `log` has what Plaid said."""

    def __init__(
        self, seed: int, *, item_id: str = "item", user: int = 1, log: Log | None = None, twin_of: "Story | None" = None
    ) -> None:
        self.rng = random.Random(seed)
        self.item_id, self.user, self.account_id = item_id, user, f"account-of-{item_id}"
        self.kind, self.subtype = self.rng.choice(KINDS)
        self.currency = self.rng.choice(CURRENCIES)
        # Without these no rule of identity takes two accounts for one.
        self.mask, self.name = item_id[-4:], f"Account of {item_id}"
        if twin_of is not None:
            self.kind, self.subtype, self.currency = twin_of.kind, twin_of.subtype, twin_of.currency
            self.mask = twin_of.mask
        self.log = Log() if log is None else log
        self.live: dict[str, Transaction] = {}
        self.opening = self._amount(2_000, 90_000)
        self.day = FIRST_DAY
        self.drift = Decimal(0)
        self._made = 0
        self.log.link(item_id, user)
        history = [self._row(pending=False) for _ in range(self.rng.randrange(3, 12))]
        self.tell([*added(*history), *added(*[self._row(pending=True) for _ in range(self.rng.randrange(3))])])

    @property
    def current(self) -> Decimal:
        """What the bank has: held, or owed."""
        posted = sum((Decimal(one.amount) for one in self.live.values() if self._is_own(one)), Decimal(0))
        return self.opening + posted + self.drift if self.is_owed else self.opening - posted + self.drift

    @property
    def is_owed(self) -> bool:
        """Whether `current` is what the user owes."""
        return self.kind in ("credit", "loan")

    def step(self) -> Received:
        """One update of a clean bank: rows come, post, change and go, and the balance with them."""
        return self.tell(self.changes())

    def tell(self, events: list[Event], *, current: Decimal | None = None, **head: Any) -> Received:
        """Append a sync with these events and the account's balance, that of the bank unless told otherwise."""
        self.day += datetime.timedelta(days=self.rng.randrange(2))
        self.log.clock_us += self.rng.randrange(1, 86_400) * 1_000_000
        status = head.pop("history_status", COMPLETE)
        told = balance(self.reported(self.current if current is None else current))
        return self.log.sync(self.item_id, *events, *told, user=self.user, history_status=status, **head)

    def reported(self, current: Decimal, **fields: Any) -> Account:
        """The account with a balance."""
        said = {
            "iso_currency_code": self.currency,
            "type": self.kind,
            "subtype": self.subtype,
            "mask": self.mask,
            "name": self.name,
        }
        return account(self.account_id, _text(current), **{**said, **fields})

    def changes(self) -> list[Event]:
        """What an update of a clean bank says, at least one thing."""
        said: list[Event] = []
        pending = [one for one in self.live.values() if one.pending]
        for one in pending:
            if self.rng.random() < 0.5:
                said += self.post(one)
        posted = [one for one in self.live.values() if not one.pending]
        if posted and self.rng.random() < 0.15:
            said += self.change(self.rng.choice(posted))
        if len(posted) > 3 and self.rng.random() < 0.1:
            one = self.rng.choice(posted[:-2])
            if all(other.transaction_id != one.transaction_id for other in self._told(said)):
                del self.live[one.transaction_id]
                said += removed(one.transaction_id)
        said += added(*[self.new(pending=self.rng.random() < 0.4) for _ in range(self.rng.randrange(1, 4))])
        return said

    def new(self, *, pending: bool = False, **fields: Any) -> Transaction:
        """A new row that the bank has from now on."""
        return self._row(pending=pending, **fields)

    def post(self, one: Transaction) -> list[Event]:
        """Let a pending row post, at times with a tip."""
        del self.live[one.transaction_id]
        amount = Decimal(one.amount) * (Decimal("1.2") if self.rng.random() < 0.2 else 1)
        posted = self._row(
            pending=False, amount=_text(amount.quantize(Decimal("0.01"))), pending_transaction_id=one.transaction_id
        )
        return [*removed(one.transaction_id), *added(posted)]

    def change(self, one: Transaction) -> list[Event]:
        """Let a row have another amount."""
        changed = msgspec.structs.replace(one, amount=_text(self._amount(1, 300)))
        self.live[one.transaction_id] = changed
        return modified(changed)

    def pending_of(self, count: int) -> list[Transaction]:
        """So many new pending rows."""
        return [self._row(pending=True) for _ in range(count)]

    def _row(self, *, pending: bool, **fields: Any) -> Transaction:
        self._made += 1
        amount = self._amount(1, 300) * self.rng.choice((1, 1, 1, -1))
        said = {
            "amount": _text(amount),
            "account_id": self.account_id,
            "iso_currency_code": self.currency,
            "pending": pending,
            "date": self.day.isoformat(),
            "name": f"Shop {self.rng.randrange(40)}",
        }
        made = transaction(f"{self.item_id}-{self._made}", **{**said, **fields})
        self.live[made.transaction_id] = made
        return made

    def _is_own(self, one: Transaction) -> bool:
        return not one.pending and one.currency == self.currency

    def _amount(self, least: int, most: int) -> Decimal:
        return Decimal(self.rng.randrange(least * 100, most * 100)) / 100

    @staticmethod
    def _told(said: list[Event]) -> list[Any]:
        return [codec.decode_event(codec.Event(kind, schema, data, 0, len(data))) for kind, schema, data in said]


def checked(
    memory: MemoryProjections, item_id: str, *, tied_at: int | None = None, account_id: str | None = None
) -> Verdict:
    """Check an account as the shell does, on the tables in memory."""
    facts = facts_of(memory, item_id, account_id or f"account-of-{item_id}", tied_at=tied_at)
    verdict = compare(facts)
    return diagnose(facts, details_of(memory, facts, verdict), verdict)


def facts_of(memory: MemoryProjections, item_id: str, account_id: str, *, tied_at: int | None = None) -> Facts:
    """What the tables in memory say of an account: the oracle of reconcile_facts.load."""
    row, item = memory.accounts[item_id, account_id], memory.items[item_id]
    ledger: dict[str, Layers] = {}
    for (ledger_account, layer), (debits, credits_) in memory.balances.items():
        user, kind, reference, currency, scale = memory.meanings[ledger_account][:5]
        if (user, kind, reference) == (row.user, BANK, account_id):
            held = _scaled(debits - credits_, scale)
            ledger[str(currency)] = ledger.get(str(currency), Layers())._replace(**{layer: held})
    sums: dict[str, Layers] = {}
    for one in _lines(memory, item_id, account_id):
        layer = "pending" if one.pending else "posted"
        before = sums.get(one.currency, Layers())
        added_ = getattr(before, layer) + (one.amount if one.counts else 0)
        sums[one.currency] = before._replace(**{layer: added_})
    return Facts(
        item_id=item_id,
        account_id=account_id,
        type=_said(row).type,
        reports=tuple(_reports(memory, row)),
        ledger=ledger,
        openings=_openings(memory, row),
        rows=sums,
        opened=row.opened,
        is_continued=row.continued_by is not None,
        is_unlinked=item.gate.unlinked,
        has_rows=bool(sums),
        history_status=item.history_status,
        missing_rows=item.missing_rows,
        last_sync_at=item.last_sync_at or 0,
        tied_at=tied_at,
    )


def details_of(memory: MemoryProjections, facts: Facts, verdict: Verdict) -> Details:
    """What may explain a gap: the oracle of reconcile_facts.load_details."""
    assert verdict.currency is not None
    row = memory.accounts[facts.item_id, facts.account_id]
    opened, since = facts.opened or 0, max(facts.tied_at or 0, (facts.opened or 0) + 1)
    posted_from = max(verdict.report.changeset if verdict.report else 0, opened)
    layers = facts.ledger.get(verdict.currency, Layers())
    lines = _lines(memory, facts.item_id, facts.account_id)
    kept = [one for one in lines if one.last_changeset >= since or one.in_review or (one.pending and not one.removed)]
    return Details(
        lines=tuple(sorted(kept, key=lambda one: (-one.last_changeset, one.own_id))),
        posted_then=layers.posted - _moved(memory, row, verdict.currency, "posted", posted_from),
        pending_at_opening=layers.pending - _moved(memory, row, verdict.currency, "pending", opened),
        duplicates=_twins(memory, row, since),
        now=memory.known_at[0],
    )


def _twins(memory: MemoryProjections, row: AccountRow, since: int) -> tuple[DuplicateAccount, ...]:
    found = []
    for other in memory.accounts.values():
        item = memory.items[other.item_id]
        same = (_said(other).mask, _said(other).type, _bank(memory, other)) == (
            _said(row).mask,
            _said(row).type,
            _bank(memory, row),
        )
        if other.item_id == row.item_id or item.gate.unlinked or not same:
            continue
        own, its = (row.item_id, row.account_id), _lines(memory, other.item_id, other.account_id)
        rows = frozenset((one.date, one.amount) for one in its if one.last_changeset >= since and not one.removed)
        found.append(
            DuplicateAccount(other.item_id, other.account_id, own in (other.continues, other.continued_by), rows)
        )
    return tuple(found)


def _bank(memory: MemoryProjections, row: AccountRow) -> str | None:
    words = memory.items[row.item_id].payload
    return None if words is None else codec.decode(Item, words).institution_id


def _lines(memory: MemoryProjections, item_id: str, account_id: str) -> list[Line]:
    found = []
    for row in memory.rows.values():
        said = codec.decode(Transaction, row.payload)
        if (row.item_id, said.account_id) == (item_id, account_id):
            found.append(
                Line(
                    row.own_id.hex(),
                    Decimal(said.amount),
                    said.currency,
                    said.pending,
                    datetime.date.fromisoformat(said.date),
                    row.last_changeset,
                    row.known_at,
                    row.removed_at is not None,
                    row.review is not None,
                )
            )
    return found


def _moved(memory: MemoryProjections, row: AccountRow, currency: str, layer: str, since: int) -> Decimal:
    bank, opening = ledger_account_id(row.user, BANK, row.account_id, currency), _own(row)
    found = Decimal(0)
    for one in memory.transfers:
        if (
            one.own_id != opening
            and one.layer == layer
            and one.context.offset > since
            and bank in (one.debit, one.credit)
        ):
            found += _scaled(one.amount if one.debit == bank else -one.amount, memory.meanings[bank][4])
    return found


def _openings(memory: MemoryProjections, row: AccountRow) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for one in memory.transfers:
        bank = ledger_account_id(row.user, BANK, row.account_id, one.currency)
        if one.own_id == _own(row) and one.layer == POSTED and bank in (one.debit, one.credit):
            amount = _scaled(one.amount if one.debit == bank else -one.amount, memory.meanings[bank][4])
            found[one.currency] = found.get(one.currency, Decimal(0)) + amount
    return found


def _own(row: AccountRow) -> bytes:
    return opening_id(row.user, row.item_id, row.account_id)


def _reports(memory: MemoryProjections, row: AccountRow) -> list[Report]:
    found = []
    for source, words, at in (
        ("cached", row.cached_payload, row.cached_at),
        ("realtime", row.realtime_payload, row.realtime_at),
    ):
        if words is None or at is None:
            continue
        said = codec.decode(Account, words)
        versions = [
            one.changeset
            for one in memory.account_versions
            if (one.item_id, one.account_id, one.source) == (row.item_id, row.account_id, source)
        ]
        if said.current is not None:
            found.append(Report(source, Decimal(said.current), said.currency, versions[-1], at))
    return found


def _said(row: AccountRow) -> Account:
    words = row.cached_payload if row.source == "cached" else row.realtime_payload
    assert words is not None
    return codec.decode(Account, words)


def _scaled(value: int, scale: object) -> Decimal:
    return Decimal(f"{value}e-{scale}")


def _text(amount: Decimal) -> str:
    text = format(amount, "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"
